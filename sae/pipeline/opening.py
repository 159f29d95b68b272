"""A run for a dictionary that comes from elsewhere: its folder with the dictionary in it, and its config."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feature_store.dictionary_files import DictionaryCard
from sae.architectures import ArchitectureConfig
from sae.errors import ConfigError
from sae.foundation.device import device_called
from sae.foundation.files import link, owned, write_folder
from sae.foundation.screen import Screen
from sae.foundation.section import Section, describe_problems
from sae.interop.origin import OURS, Origin, origin_of
from sae.interop.transfer import converted, format_called, provenance_of
from sae.model.language_model import FolderModel, HubModel, PackageModel
from sae.pipeline.config import RunConfig, config_of_run, load_config
from sae.pipeline.licences import ask_once
from sae.pipeline.run import run
from sae.pipeline.stage import Stage
from sae.pipeline.stages.first_look import FirstLook
from sae.pipeline.summary import RunSummary
from sae.publish import dictionary
from sae.publish.card import config_of, read_card, weights_files, widths_of
from sae.publish.controls import CHECK_FILE
from sae.text.corpus import DatasetText, source_named

CTX_LEN = 128
HELD_OUT_TOKENS = 16_384
FIRST_TOKENS = 16_384
BATCH_CONTEXTS = 32  # of 128 tokens: a CPU's products are a tenth faster than with 16
FEW_FILES = (
    20  # plain-text files; fewer of them are read paragraph by paragraph, so that there are documents to test on
)
MODELS_OF_TRANSFORMER_LENS = {
    "gpt2-small": "openai-community/gpt2", "gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl",
    "gemma-2b": "google/gemma-2b", "gemma-2b-it": "google/gemma-2b-it", "mistral-7b": "mistralai/Mistral-7B-v0.1",
}  # fmt: skip
OWNERS = {"gemma-": "google", "pythia-": "EleutherAI", "Llama-": "meta-llama", "Qwen": "Qwen"}


@dataclass(frozen=True)
class Opening:
    """What people say when they open a dictionary; None is found out."""

    what: str
    text: str
    model: str | None = None
    format: str | None = None
    hook: str | None = None
    target: str | None = None
    name: str | None = None
    tokens: int = 1_000_000
    ctx_len: int | None = None
    runs_dir: Path = Path("runs")
    accept_misfit: bool = False
    accept_licence: bool = False


def opened_run(opening: Opening, screen: Screen) -> RunConfig:
    """The config of the run that looks at a dictionary on a text; the dictionary lies in the run's folder.

    The same words give the same folder, in which a former opening goes on. Raises `ConfigError` for what is neither known
    nor said, and for a licence that nobody accepts.
    """
    source = text_source(opening.text)
    if former := _former(opening, source):
        return former
    origin = origin_of(opening.what, opening.format)
    if origin.licence:
        screen.say(f"{origin.name}: licence {origin.licence}")
        ask_once(origin.name, origin.licence, is_accepted=opening.accept_licence)
    short_text = _slug(text_name(opening.text))[:20].rstrip("-._")
    name = opening.name or f"{origin.name[:40].rstrip('-._')}-on-{short_text}"
    folder = opening.runs_dir.expanduser() / name
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder}: holds another run already. Give a name for this one: --name NAME, or remove the folder."
        )

    target = folder / "dictionaries" / origin.name
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        note = None if (target / DictionaryCard.file_name).exists() else _bring(origin, opening, target, name)
        if note:
            screen.say(f"{origin.name}: {note}")
    return _config(origin, opening, source, name=name, target=target)


def perform(opening: Opening, on_first_look: Callable[[Path], None] | None = None) -> RunSummary:
    """Performs the run of an opening and returns its summary; `on_first_look` is called when there is something to see.

    It gets the folder of the run, and is called again when the whole is there.
    """
    screen = Screen()
    config = opened_run(opening, screen)

    def after(stage: Stage) -> None:
        if on_first_look is not None and isinstance(stage, FirstLook):
            on_first_look(config.folder)

    summary = run(config, screen, after=after)
    if on_first_look is not None:  # of a run that was complete already
        on_first_look(config.folder)
    return summary


def text_source(text: str) -> Any:
    """The source that people name; a few plain-text files are read paragraph by paragraph."""
    source = source_named(text)
    if not isinstance(source, DatasetText) or source.path != "text" or not source.data_files:
        return source
    [pattern] = source.data_files
    matching = [path for path in glob(str(Path(pattern).expanduser()), recursive=True) if Path(path).is_file()]
    return source.model_copy(update={"sample_by": "paragraph"}) if len(matching) < FEW_FILES else source


def text_name(text: str) -> str:
    """A text as people name it, without the folders around it."""
    return "documentation of installed packages" if text == "installed-docs" else Path(text).name


def _former(opening: Opening, source: Any) -> RunConfig | None:
    """The config of an earlier opening of the same dictionary on the same text, so that it goes on without a network.

    One that was refused by the check, so that nothing was made of it, makes room for a trial with other settings.

    Raises `ConfigError` if it was begun with other settings than are given now.
    """
    home = opening.runs_dir.expanduser()
    name = opening.name or "*"
    for path in sorted(home.glob(f"{name}/config.yaml")):
        if b"\nopened:\n" not in path.read_bytes():
            continue
        config = config_of_run(path.parent, "")
        opened, texts = config.opened, config.text.sources
        if opened is None or opened.what != opening.what or texts != (_absolute_source(source),):
            continue
        differing = [option for option, differs in _differences(config, opening).items() if differs]
        if differing and not any(path.parent.glob(f"dictionaries/*/{CHECK_FILE}")):
            with owned(path.parent):  # nobody works on it: it was refused, and this is another trial
                pass
            shutil.rmtree(path.parent)
            return None
        if differing:
            raise ConfigError(
                f"{config.folder}: was begun with another {', '.join(differing)}. Give this one a name: --name NAME, or remove "
                "the folder."
            )
        return config
    return None


def _absolute_source(source: Any) -> Any:
    """The source as a run's config has it."""
    return source.absolute() if isinstance(source, Section) else source


def _differences(config: RunConfig, opening: Opening) -> dict[str, bool]:
    """What people say now, and whether the run was begun with something else."""
    [sae] = config.sae
    hooks = ",".join(str(hook) for hook in sae.reads if hook == hook.place)
    return {
        "--tokens": config.train.tokens != opening.tokens,
        "--hook": opening.hook is not None and hooks != opening.hook,
        "--ctx-len": opening.ctx_len is not None and config.text.ctx_len != opening.ctx_len,
        "--target": opening.target is not None and str(sae.writes[0]) != opening.target,
        "--accept-misfit": config.opened is not None and config.opened.accept_misfit != opening.accept_misfit,
        "--model": opening.model is not None and config.model != _absolute_source(model_named(opening.model)),
    }


def _bring(origin: Origin, opening: Opening, target: Path, run_name: str) -> str | None:
    """Puts the dictionary into its folder, whole or not at all, and returns what differs from its file, in words.

    Its card gets the name of this run, by which it is told.
    """
    if origin.format == OURS:
        card = read_card(origin.path)

        def fill(place: Path) -> None:
            for name in weights_files(card, str(origin.path)):
                link(origin.path / name, place / name)
            card.model_copy(update={"run": run_name, "name": target.name}).write(place)

        write_folder(target, fill)
        dictionary.load(target)  # its hashes are checked
        return None

    form = format_called(origin.format)
    sae, facts = converted(form, origin.path, origin.name, hook=opening.hook, writes=opening.target, known=origin.facts)
    dictionary.publish(target, sae, provenance_of(facts, origin.format, origin.path, run_name))
    return facts.get("note")


def _config(origin: Origin, opening: Opening, source: Any, *, name: str, target: Path) -> RunConfig:
    card = read_card(target)
    sae: ArchitectureConfig = config_of(card.sae, str(target)).model_copy(update={"name": target.name})
    trained = _run_around(origin)
    model = _model(opening, card, trained)
    ctx_len = opening.ctx_len or (trained.text.ctx_len if trained else None) or card.text.ctx_len or CTX_LEN
    tree: dict[str, Any] = {
        "name": name,
        "runs_dir": opening.runs_dir,
        "model": model.model_dump(),
        "text": {
            "sources": [source.model_dump()],
            "ctx_len": min(ctx_len, opening.ctx_len or CTX_LEN),
            "held_out_tokens": min(HELD_OUT_TOKENS, max(2, opening.tokens // 8)),
            "on_end": "stop",
        },
        "harvest": trained.harvest.model_dump() if trained else _harvest(),
        # A segment of the stream is what is harvested before anything can be seen, and the ring holds two.
        "shuffle": {"buffer_bytes": 2 * 2 * FIRST_TOKENS * sum(widths_of(card, str(target)))},
        "train": {"tokens": opening.tokens, "batch_tokens": min(1024, opening.tokens)},
        "sae": [sae.model_dump()],
        "opened": {
            "what": opening.what,
            "text": text_name(opening.text),
            "format": origin.format,
            "weights_sha256": card.weights_sha256,
            "said_l0": origin.facts.get("l0"),
            "first_tokens": min(FIRST_TOKENS, opening.tokens),
            "accept_misfit": opening.accept_misfit,
        },
    }
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(describe_problems(error, RunConfig))) from None


def _harvest() -> dict[str, Any]:
    """How the model is run: on a CPU with more contexts at a time than in training."""
    return {"batch_contexts": BATCH_CONTEXTS} if device_called("auto", "device:").type == "cpu" else {}


def _run_around(origin: Origin) -> RunConfig | None:
    """The config of the run that a dictionary of ours lies in; None if it lies alone."""
    home = origin.path.resolve().parent.parent
    is_in_run = origin.format == OURS and (home / "config.yaml").exists()
    return config_of_run(home, "") if is_in_run else None


def _model(opening: Opening, card: DictionaryCard, trained: RunConfig | None) -> HubModel | FolderModel | PackageModel:
    """The model that people name, or that of the run around the dictionary, or the one that the card names."""
    if opening.model:
        return model_named(opening.model)
    if trained:
        return trained.absolute().model
    repo = hub_name(card.model.name)
    if repo is None:
        raise ConfigError(
            f"{opening.what}: of which model is it? Its files say {card.model.name!r}. Give --model: a repository of the hub, "
            "a folder, or a run or YAML file whose model it is."
        )
    return HubModel(source="hub", repo=repo, allow_unpinned=True)


def model_named(text: str) -> HubModel | FolderModel | PackageModel:
    """The model that a command line names: a folder, a run or config with a model, or a repository of the hub."""
    path = Path(text).expanduser()
    if (path / "config.yaml").exists():
        return config_of_run(path, "").absolute().model
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return load_config(path).absolute().model
    if path.exists():
        return FolderModel(source="folder", path=path.resolve())
    repo, _, revision = text.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise ConfigError(
            f"--model {text}: no such folder, and no repository of the hub (OWNER/NAME, or OWNER/NAME@COMMIT)."
        )
    return HubModel(source="hub", repo=repo, revision=revision or None, allow_unpinned=True)


def hub_name(model: str) -> str | None:
    """The repository of a model that a file names in its own way; None if that cannot be told."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return model
    if model in MODELS_OF_TRANSFORMER_LENS:
        return MODELS_OF_TRANSFORMER_LENS[model]
    owner = next((owner for start, owner in OWNERS.items() if model.startswith(start)), None)
    return f"{owner}/{model}" if owner else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "text"
