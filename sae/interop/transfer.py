"""Export and import of dictionaries, each held to an equality check before anything is published."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from feature_store.dictionary_files import (
    DICTIONARY_NAME,
    ImportFacts,
    ModelFacts,
    Provenance,
    TextFacts,
    TrainingFacts,
)
from sae.architectures import SparseAutoencoder
from sae.errors import ArtefactError, ConfigError
from sae.foundation.new_folder import check_new, write_new_folder
from sae.interop.foreign_weights import ForeignWeights, largest_difference, module_of, weights_of
from sae.interop.format import Format
from sae.interop.formats import FORMATS
from sae.model.hookpoints import HookPoint
from sae.publish import dictionary

TOLERANCE = 1e-5


def format_called(name: str) -> Format:
    """The format of that name (a hyphen counts as an underscore); otherwise raises `ConfigError` with those that exist."""
    key = name.replace("-", "_")
    if key not in FORMATS:
        raise ConfigError(f"format {name!r} is not known; known are {', '.join(FORMATS)}.")
    return FORMATS[key]


def export_dictionary(folder: Path, to: str, target: Path) -> str | None:
    """Writes a dictionary folder in a foreign format; returns what the format does not keep, or None.

    The export is read back and compared with the dictionary on 1,000 random rows. Raises `ArtefactError`, and leaves
    nothing, if they differ by more than 1e-5 of the largest value.
    """
    form = format_called(to)
    if not form.writes:
        writable_formats = ", ".join(name for name, other in FORMATS.items() if other.writes)
        raise ConfigError(f"saedex does not write {to}; it writes {writable_formats}.")

    check_new(target)

    sae = dictionary.load(folder)
    weights = weights_of(sae, dictionary.read_card(folder))
    if "context" in weights.settings and not form.holds_context:
        raise ConfigError(f"{to} has no temporal dictionaries; use --to saelens.")

    def fill(place: Path) -> None:
        form.write(weights, place)
        facts = {**weights.facts, **({} if sae.centred else {"target": str(sae.config.writes[0])})}
        read_back = module_of(_with_facts(form.read(place), facts), "check")
        # If the form loses something, the export is held to what the form keeps.
        reference = module_of(_with_facts(weights, facts), "check") if weights.lossy else sae
        spread = float(weights.facts["median_norm"] or reference.b_dec.norm() or 1.0)
        difference = largest_difference(reference, read_back, spread)
        if not difference <= TOLERANCE:
            raise ArtefactError(
                f"export to {to}: the file read back differs by {difference:.1e} of the largest value, allowed is "
                f"{TOLERANCE:.0e}. Nothing was written; please report this."
            )

    write_new_folder(target, fill)

    return weights.lossy


def _with_facts(weights: ForeignWeights, facts: dict[str, Any]) -> ForeignWeights:
    return replace(weights, facts={**weights.facts, **facts})


def import_dictionary(
    path: Path, source: str, target: Path, hook: str | None, *, writes: str | None = None
) -> SparseAutoencoder:
    """Publishes a foreign dictionary as a dictionary folder and returns it; no code in the file is executed."""
    form = format_called(source)
    check_new(target)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.")

    name = name_of(target)
    sae, facts = converted(form, path, name, hook=hook, writes=writes)
    dictionary.publish(target, sae, provenance_of(facts, source, path), write_new_folder)

    return sae


def converted(
    form: Format,
    path: Path,
    name: str,
    *,
    hook: str | None = None,
    writes: str | None = None,
    known: dict[str, Any] | None = None,
) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """(the dictionary in a foreign file, called `name`; what is known of it).

    `known` are facts that the file need not say, such as those of its release (with `scale`, that of the activations which
    its weights read and write); `hook` and `writes` are what people say,
    and they win. Raises `ConfigError` for what nobody says, `ArtefactError` for what cannot be.
    """
    weights = form.read(path)
    said = {key: value for key, value in weights.facts.items() if value not in (None, "unknown")}
    # The file is nearer to the weights than the names around it; but only it says whether there is a target at all.
    weights = replace(weights, facts={**weights.facts, **(known or {}), **said})
    if scale := (known or {}).get("scale"):  # of the activations that the weights were made for
        weights = weights.scaled(scale, scale)
    if weights.kind == "topk" and weights.k is None and "k" not in said and (known or {}).get("l0"):
        weights = replace(weights, k=int(weights.facts["l0"]))

    if writes is not None or "target" in weights.facts:
        writes = writes or (weights.facts["target"] if weights.facts["target"] != "unknown" else None)
        if writes is None or (hook is None and "hook" not in weights.facts):
            raise ConfigError(
                f"{path}: a transcoder. Say where it reads and writes: --hook mlp_in.8 --target mlp_out.8"
            )
        weights = _with_facts(weights, {"target": _hook_point(writes, "--target")})

    if hook is not None:
        hooks = _hook_points(hook)
        weights = _with_facts(weights, {"hook": hooks[0], "more_hooks": hooks[1:]})
    if writes is not None and weights.facts.get("hook") == writes:
        raise ConfigError(
            f"--hook and --target are both {writes}; a transcoder reads one hook point and writes another."
        )
    _check_hooks(weights.facts, path)
    if "context" in weights.settings:  # a temporal dictionary reconstructs what it reads
        weights = _with_facts(weights, {"target": weights.facts["hook"]})
    try:
        return module_of(weights, name), weights.facts
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def provenance_of(facts: dict[str, Any], source: str, path: Path, run: str = "imported") -> Provenance:
    """What the card of a foreign dictionary says of where it comes from."""
    return Provenance(
        run=run,
        model=ModelFacts(name=_text(facts.get("model"))),
        text=TextFacts(ctx_len=_length(facts.get("ctx_len"))),
        training=TrainingFacts(activations_seen=None, dead_at_end=None),
        imported_from=ImportFacts(format=source, path=path.name, note=facts.get("note")),
    )


def name_of(target: Path) -> str:
    """The dictionary's name: that of its folder in small letters; raises `ConfigError` if it cannot be one."""
    name = target.name.lower()
    if not re.match(DICTIONARY_NAME, name):
        raise ConfigError(
            f"{target}: a dictionary is called after its folder, and {target.name!r} cannot be its name: allowed are up to "
            f"64 of the letters a-z, digits, '.', '_' and '-', of which the first is a letter or a digit. Choose another."
        )
    return name


def _hook_point(text: str, option: str) -> str:
    try:
        return str(HookPoint.parse(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: {error}") from None


def _hook_points(text: str) -> list[str]:
    """The hook points that --hook names."""
    hooks = [_hook_point(part, "--hook") for part in text.split(",")]
    if len(set(hooks)) < len(hooks):
        raise ConfigError(f"--hook {text} names a hook point twice.")
    return hooks


def _check_hooks(facts: dict[str, Any], path: Path) -> None:
    """Raises `ConfigError` if nobody says which hook points a dictionary reads, or too few or too many."""
    n_hooks = facts.get("n_hooks", 1)
    if "hook" not in facts:
        there = facts.get("hook_of_file")
        reason = f"says {there!r}, which is no hook point that saedex knows for certain" if there else "does not say it"
        several = " and the others, with commas between them" if n_hooks > 1 else ""
        raise ConfigError(
            f"{path}: where was it trained? The file {reason}. Give --hook, such as resid_post.8{several}."
        )

    n_named = 1 + len(facts.get("more_hooks", ()))
    if n_hooks != n_named:
        example = ",".join(f"resid_post.{4 * (i + 1)}" for i in range(n_hooks))
        raise ConfigError(
            f"{path}: reads {n_hooks} hook point{'s' * (n_hooks > 1)}, and --hook or its name says {n_named}. Give exactly "
            f"those, in their order, such as --hook {example}."
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else "unknown"


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
