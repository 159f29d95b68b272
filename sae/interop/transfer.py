"""Export and import of dictionaries, each held by an equality check before anything is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sae import interop
from sae.architectures import SparseAutoencoder
from sae.errors import ArtefactError, ConfigError
from sae.foundation.discovery import instances_in
from sae.foundation.files import write_folder
from sae.interop.format import Format
from sae.interop.plain import largest_difference, module_of, plain_of
from sae.model.hookpoints import HookPoint
from sae.publish import dictionary

TOLERANCE = 1e-5
FORMATS = {name.replace("gemma_npz", "gemma-npz"): f for name, f in instances_in(interop.__name__, Format).items()}


def export_dictionary(folder: Path, to: str, target: Path) -> str | None:
    """Writes a dictionary folder in a foreign format; returns what the format does not keep, or None.

    The export is read back and compared with the dictionary on 1,000 random rows; raises `ArtefactError` and leaves
    nothing where they differ by more than 1e-5 of the largest value.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already. Give a new folder.")
    card = dictionary.read_card(folder)
    sae, form = dictionary.load(folder), FORMATS[to]
    plain = plain_of(sae, card)

    def fill(place: Path) -> None:
        form.write(plain, place)
        facts = {**plain.facts, **({"target": str(sae.config.writes[0])} if not sae.centred else {})}
        again = form.read(place)
        back = module_of(_with_facts(again, facts), "check")
        reference = module_of(_with_facts(plain, facts), "check") if plain.lossy else sae
        spread = float(plain.facts["median_norm"] or reference.b_dec.norm() or 1.0)
        difference = largest_difference(reference, back, spread)
        if not difference <= TOLERANCE:
            raise ArtefactError(
                f"export to {to}: the file read back differs by {difference:.1e} of the largest value, allowed is "
                f"{TOLERANCE:.0e}. Nothing was written; please report this."
            )

    target.parent.mkdir(parents=True, exist_ok=True)
    write_folder(target, fill)
    return plain.lossy


def _with_facts(plain: Any, facts: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(plain, facts={**plain.facts, **facts})


def import_dictionary(
    path: Path, source: str, target: Path, hook: str | None, writes: str | None = None
) -> SparseAutoencoder:
    """Publishes a foreign dictionary as a dictionary folder and returns it; nothing in the file is executed."""
    if target.exists():
        raise ConfigError(f"{target}: exists already. Give a new folder.")
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.")
    plain = FORMATS[source].read(path)
    if writes is not None or "target" in plain.facts:
        if writes is None or hook is None:
            raise ConfigError(
                f"{path}: a transcoder. Say where it reads and writes: --hook mlp_in.8 --target mlp_out.8"
            )
        plain = _with_facts(plain, {"target": writes})
    if hook is not None:
        plain = _with_facts(plain, {"hook": hook})
    if "hook" not in plain.facts:
        raise ConfigError(f"{path}: the file does not say where it was trained. Give --hook, such as resid_post.8.")
    try:
        HookPoint.parse(plain.facts["hook"])
        sae = module_of(plain, target.name.lower())
    except (ValidationError, ValueError) as error:
        raise ArtefactError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    facts = {
        "run": "imported",
        "model": {"name": plain.facts.get("model", "unknown")},
        "text": {"ctx_len": plain.facts.get("ctx_len")},
        "imported_from": {"format": source, "path": path.name},
        "training": {"activations_seen": None, "dead_at_end": None},
    }
    dictionary.publish(target, sae, facts)
    return sae
