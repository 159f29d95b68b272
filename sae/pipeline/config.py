"""config.yaml to one frozen value, `RunConfig`. Every room owns the class of its section; this file puts them together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from sae.architectures import SaeConfig
from sae.errors import ArtefactError, ConfigError
from sae.evaluation.evaluate import EvaluateConfig
from sae.foundation.section import Count, Section, classes_in, describe_problems
from sae.interpret.interpret import InterpretConfig
from sae.model.language_model import ModelConfig
from sae.pipeline.opened import OpenedConfig
from sae.pipeline.run_log import LogConfig
from sae.pipeline.sweep import expand
from sae.publish.index import IndexConfig
from sae.stream.harvest import HarvestConfig
from sae.stream.shuffle import ShuffleConfig
from sae.text.tokens import TextConfig
from sae.training.optimiser import TrainConfig

MAX_BYTES = 1 << 20


class RunConfig(Section):
    """A complete run: from a model and a text to published dictionaries."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="Name of the run."
    )
    runs_dir: Path = Field(
        default=Path("runs"), description="Folder that holds all runs; this one lies in runs_dir/name."
    )
    seed: Count = Field(default=0, ge=0, lt=1 << 31, description="Seed of initialisation, shuffling and sampling.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to compute; auto: a GPU if there is one."
    )
    model: ModelConfig = Field(description="The language model.")
    text: TextConfig = Field(description="The text.")
    harvest: HarvestConfig = Field(default_factory=HarvestConfig, description="Activations.")
    shuffle: ShuffleConfig = Field(default_factory=ShuffleConfig, description="Mixing.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Optimisation.")
    sae: Annotated[tuple[SaeConfig, ...], BeforeValidator(expand)] = Field(  # pyright: ignore[reportInvalidTypeForm]
        min_length=1, description="Dictionaries, or grids of them; all train on the same harvest."
    )
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Held-out evaluation.")
    index: IndexConfig = Field(default_factory=IndexConfig, description="Feature store.")
    interpret: InterpretConfig = Field(default_factory=InterpretConfig, description="Labels.")
    log: LogConfig = Field(default_factory=LogConfig, description="Logging.")
    opened: OpenedConfig | None = Field(
        default=None, description="A dictionary that comes from elsewhere, in place of training; `sae open` writes it."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        problems = []
        names = [sae.name for sae in self.sae]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(f"sae: the name {name!r} is given twice; every dictionary needs its own")

        if self.opened is None:
            problems += [
                f"sae.{number}: context is that of a published temporal dictionary; saedex opens such and trains none"
                for number, sae in enumerate(self.sae)
                if sae.hook.predicted in sae.reads
            ]

        if self.harvest.drop_positions >= self.text.ctx_len:
            problems.append(
                f"harvest.drop_positions: {self.harvest.drop_positions} leaves nothing of text.ctx_len {self.text.ctx_len}"
            )

        if self.train.batch_tokens > self.train.tokens:
            problems.append(
                f"train.batch_tokens: {self.train.batch_tokens} is more than train.tokens {self.train.tokens}"
            )

        if problems:
            raise ValueError("; ".join(problems))

        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs_dir.expanduser() / self.name

    @property
    def dictionary_folders(self) -> dict[str, Path]:
        """The folder of every dictionary, by its name."""
        return {sae.name: self.folder / "dictionaries" / sae.name for sae in self.sae}

    def sha256(self) -> str:
        """Hash of every setting that the results depend on: not of where they are written and logged."""
        return hashlib.sha256(self.model_dump_json(exclude={"runs_dir", "log"}).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # nosec B506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _override(tree: dict[str, Any], assignment: str) -> None:
    """Applies `a.b.0.c=value` to the tree; the value is read as YAML."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {assignment!r}: write key.key=value, for example --set train.tokens=1e6")

    node: Any = tree
    keys = path.split(".")

    for key in keys[:-1]:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            raise ConfigError(f"--set {assignment!r}: there is no section {key!r}")

    if isinstance(node, list) and keys[-1].isdigit() and int(keys[-1]) < len(node):
        node[int(keys[-1])] = _parse(text, f"--set {assignment}")
    elif isinstance(node, dict):
        node[keys[-1]] = _parse(text, f"--set {assignment}")
    else:
        raise ConfigError(f"--set {assignment!r}: there is no such entry")


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The configuration in a YAML file; raises `ConfigError` with every problem at once."""
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text. Give the path of a YAML file.") from None

    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(data):,} bytes; a configuration may have {MAX_BYTES:,}.")

    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a mapping of sections is wanted, found {type(tree).__name__}.")

    for assignment in overrides:
        _override(tree, assignment)

    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = describe_problems(error, RunConfig)
        raise ConfigError(f"{path}: {len(lines)} problem{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines)) from None


def config_of_run(home: Path, hint: str) -> RunConfig:
    """The settings that a run folder was begun with.

    Raises `ConfigError`, which ends with `hint`, if there are none, and `ArtefactError` if they are damaged.
    """
    path = home / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{home}: no config.yaml of a run there. {hint}")
    try:
        return load_config(path)
    except ConfigError as error:
        raise ArtefactError(f"{path}: not the settings that the run was begun with: {error}") from None


class Setting(NamedTuple):
    """One line of the reference: the dotted key, its default as text, and what it means."""

    key: str
    default: str
    meaning: str


def explain(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[Setting]:
    """Every setting of the config, in order."""
    rows: list[Setting] = []
    for name, field in model.model_fields.items():
        inner = classes_in(field.annotation)
        repeated = "[]" if "tuple" in str(field.annotation) and inner else ""
        key = f"{prefix}{name}{repeated}"
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        rows.append(Setting(key, "" if inner and default != "required" else default, field.description or ""))
        for cls in inner:
            tag = next(
                (
                    f"<{getattr(cls.model_fields[t].annotation, '__args__', ('',))[0]}>"
                    for t in ("source", "architecture")
                    if t in cls.model_fields
                ),
                "",
            )
            rows += explain(cls, f"{key}{tag}.")

    return rows


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, default=str)
