"""A dictionary folder as a repository of the hub that people read, and that saedex and SAELens load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from feature_store.dictionary_files import DictionaryCard, LabelSummary, Metrics
from feature_store.pointer import DATABASES, read_pointer
from sae.errors import ConfigError
from sae.foundation.files import link
from sae.foundation.hub import Place, upload
from sae.interop.transfer import export_dictionary
from sae.publish import dictionary
from sae.publish.card import weights_files
from sae.publish.controls import CHECK_FILE

SAELENS = "saelens"  # the folder beside ours that SAELens loads
# What a reader of the repository wants; files beside these, such as locks and comparisons, are about this machine.
FILES = (
    "labels.json", "metrics.json", "report.md", "training.jsonl", "curves.png", "density.png", "zf.png", "zf.csv",
    "concepts.json", "concepts.parquet", "features.parquet", "contexts.parquet", "head_shares.safetensors", CHECK_FILE,
)  # fmt: skip
OF_TEXT = ("contexts.parquet",)  # they hold text, as the store does


class Release(NamedTuple):
    """What was sent: the place, the bytes of all files, and why SAELens cannot load it, if so."""

    place: Place
    n_bytes: int
    unread_by_saelens: str | None


def release(
    folder: Path, place: Place, *, licence: str | None = None, with_text: bool = True, private: bool = False
) -> Release:
    """Publishes a dictionary folder at a place of the hub in one commit: card, weights, figures, store, README.md.

    `saelens/` holds the same dictionary for SAELens, where it has this kind. Without text, neither the store nor contexts
    are sent. Raises `ConfigError` if there is no store to send, `UnavailableError` if the hub refuses.
    """
    card = dictionary.read_card(folder)
    dictionary.load(folder)  # its hashes are checked
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "release"
        for name in _names(folder, card, with_text=with_text):
            link(folder / name, target / name)
        unread = _for_saelens(folder, target / SAELENS)
        text = readme(card, folder, place, licence, for_saelens=unread is None)
        (target / "README.md").write_text(text, encoding="utf-8")
        n_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        upload(target, place, f"{card.name}: {card.sae['architecture']}, {card.sae['d_sae']} latents", private=private)

    return Release(place, n_bytes, unread)


def _names(folder: Path, card: DictionaryCard, *, with_text: bool) -> Iterator[str]:
    yield DictionaryCard.file_name
    yield from weights_files(card, str(folder))
    for name in FILES:
        if (folder / name).is_file() and (with_text or name not in OF_TEXT):
            yield name
    if not with_text:
        return
    pointer = read_pointer(folder / "store")
    if DATABASES[0] not in pointer:
        raise ConfigError(f"{folder}: no store there. Index it first (sae index), or publish without it: --no-text.")
    yield "store/current.json"
    for entry in pointer.values():
        yield f"store/{entry['file']}"


def _for_saelens(folder: Path, target: Path) -> str | None:
    """Writes the folder for SAELens; returns why there is none, if so."""
    try:
        export_dictionary(folder, "saelens", target)
    except ConfigError as error:
        return str(error)
    return None


def readme(card: DictionaryCard, folder: Path, place: Place, licence: str | None, *, for_saelens: bool) -> str:
    """README.md of the repository: the hub's front matter, what the dictionary is, its figures, and how it is loaded."""
    metrics = Metrics.read(folder) if (folder / Metrics.file_name).exists() else Metrics()
    labels = LabelSummary.read(folder) if (folder / LabelSummary.file_name).exists() else None
    hook, architecture, d_sae = card.sae["hook"], card.sae["architecture"], card.sae["d_sae"]
    front = [
        "---",
        "library_name: saedex",
        *([f"license: {licence}"] if licence else []),
        *([f"base_model: {card.model.name}"] if "/" in card.model.name else []),
        "tags:",
        *(f"- {tag}" for tag in ("sparse-autoencoder", "interpretability", "saedex", architecture)),
        "---",
    ]
    figures = {
        "model": card.model.name,
        "hook point": f"`{hook}`",
        "architecture": architecture,
        "latents": f"{d_sae:,}",
        "latents that fire per token (l0)": _shown(metrics.l0, ".1f"),
        "variance left unexplained (fvu)": _shown(metrics.fvu, ".3f"),
        "loss recovered, against mean ablation": _shown(metrics.loss_recovered and metrics.loss_recovered.mean, ".3f"),
        "features with a label": f"{labels.features_labelled:,}" if labels else "",
        "labels better than 95 % of random directions'": _shown(labels and labels.share_beating_control, ".0%"),
    }
    rows = [f"| {name} | {value} |" for name, value in figures.items() if value]
    return "\n".join([*front, "", f"# {card.name}", "", "| | |", "|---|---|", *rows, "", *_use(place, for_saelens), ""])


def _use(place: Place, for_saelens: bool) -> Iterator[str]:
    """How the repository is used, in the words of a shell and of Python."""
    yield from ("```python", "import sae", "", f'dictionary = sae.load("{place}")', "```", "")
    yield from ("Look at its features:", "", "```sh", f"sae serve {place}", "```")
    if for_saelens:
        yield from ("", "With SAELens:", "", "```python", "from sae_lens import SAE", "")
        yield from (f'dictionary = SAE.from_pretrained("{place.repo}", "{place.inside}{SAELENS}")', "```")


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
