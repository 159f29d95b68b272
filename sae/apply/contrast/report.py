"""What `sae contrast` writes down: features of both sets, their removal, the sparse map, and the control vector."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from feature_store.results.findings import Figure, Finding, Table
from sae.apply.contrast.affine_map import fit_map
from sae.apply.contrast.sets import Contrast, contrast
from sae.apply.contrast.steering import KINDS, steering_tables
from sae.apply.direction import decompose, difference_of_means
from sae.apply.finding import figure, table, write_finding
from sae.apply.removal import CONTROLS, Ablation, ablation, check_removable
from sae.apply.text_codes import At, TextReader
from sae.errors import ConfigError, DataError
from sae.foundation.screen import Screen
from sae.text.brought import some_texts

ROWS, PARTS = 200, 10


@dataclass(frozen=True)
class ContrastSettings:
    """The sets (files), how many texts of each, what counts as firing, and what to do with features that differ."""

    a: str
    b: str
    at: At = "any"
    texts: int = 200
    q: float = 0.05
    ablate: int = 10
    penalty: float = 2.0
    samples: int = 8
    kl: float = 0.25
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        if self.texts < 1 or self.ablate < 0 or not 0 < self.q < 1 or not self.penalty > 0:
            raise ConfigError(
                f"--texts {self.texts}, --ablate {self.ablate}, --q {self.q}, --penalty {self.penalty}: wanted are at least 1 "
                "text, 0 features or more, a rate between 0 and 1, and a penalty above 0."
            )
        if self.samples < 0 or not self.kl > 0:
            raise ConfigError(
                f"--samples {self.samples}, --kl {self.kl:g}: wanted are 0 texts or more, and a disturbance above 0."
            )


def contrast_finding(
    folder: Path, name: str, reader: TextReader, settings: ContrastSettings, *, screen: Screen
) -> Finding:
    """Reads both sets, contrasts them, and writes the finding `name` of the dictionary in `folder`.

    Raises `DataError` if a text is in both sets or a set is too small.
    """
    if settings.ablate or settings.samples:
        check_removable(reader)
    texts = some_texts(settings.a, settings.texts), some_texts(settings.b, settings.texts)
    common = set(texts[0]) & set(texts[1])
    if common:
        raise DataError(f"{len(common)} texts are in both files, such as {sorted(common)[0][:80]!r}.")

    passes = 3 + (CONTROLS + 2 if settings.ablate else 0) + (KINDS if settings.samples else 0)
    with screen.progress("contrast", passes, "passes") as progress:
        codes = [reader.read_every(part) for part in texts]
        progress.step()
        maxima = [code.maxima(settings.at) for code in codes]
        result = contrast(maxima[0] > 0, maxima[1] > 0)
        x = [reader.activations(part, "last" if settings.at == "last" else "mean") for part in texts]
        progress.step()
        chosen = result.ranked(1, settings.q)[: settings.ablate]
        removed = None
        if chosen:
            rate = np.concatenate(maxima) > 0
            removed = ablation(reader, texts, chosen, rate.mean(0), seed=settings.seed, step=progress.step)
        tables = [
            _features(result, 1, settings.q, "Features that fire on more texts of A"),
            _features(result, -1, settings.q, "Features that fire on more texts of B"),
            _map(maxima, settings.penalty),
            _parts(reader, x),
        ]
        if settings.samples:
            tables += steering_tables(reader, texts, settings, step=progress.step)
        progress.update(passes)

    n_a, n_b = (len(result.ranked(side, settings.q)) for side in (1, -1))
    return write_finding(
        folder, name, system="contrast", title=f"{Path(settings.a).name} against {Path(settings.b).name}",
        summary=f"{n_a} features fire on more texts of A, {n_b} on more of B, at a false discovery rate of {settings.q:g}.",
        settings={**asdict(settings), "a": Path(settings.a).name, "b": Path(settings.b).name,
                  "texts_a": len(texts[0]), "texts_b": len(texts[1])},
        figures=_figures(removed), tables=tables,
    )  # fmt: skip


def _features(result: Contrast, side: int, q: float, title: str) -> Table:
    columns = {
        "feature": "feature",
        "texts of A": "number",
        "texts of B": "number",
        "log odds": "number",
        "low": "number",
        "high": "number",
        "q": "number",
    }
    values = (result.share_a, result.share_b, result.log_odds, result.low, result.high, result.q)
    return table(title, columns, [[f, *(v[f] for v in values)] for f in result.ranked(side, q)[:ROWS]])


def _map(maxima: list[np.ndarray], penalty: float) -> Table:
    """Latents that the sparse map from B to A touches."""
    fitted = fit_map(maxima[1], maxima[0], penalty)
    rows = [[f, fitted.scale[f], fitted.shift[f], fitted.before[f], fitted.after[f]] for f in fitted.support[:ROWS]]
    columns = {"feature": "feature", "scale": "number", "shift": "number", "distance": "number", "after": "number"}
    return table(f"Sparse map from B to A: {len(fitted.support)} latents are touched", columns, rows)


def _parts(reader: TextReader, x: list[np.ndarray]) -> Table:
    """The latents in the difference of means."""
    rows = reader.sae.W_dec.detach().float().cpu().numpy()
    parts = decompose(difference_of_means(x[0], x[1]), rows, PARTS)
    return table(
        f"Control vector (difference of means) as {len(parts.features)} latents, which leave {parts.left:.0%} of it",
        {"feature": "feature", "weight": "number"},
        list(zip(parts.features, parts.weights, strict=True)),
    )


def _figures(removed: Ablation | None) -> list[Figure]:
    if removed is None:
        return []
    n = len(removed.features)
    rows = (
        ("loss on A without them", removed.a, f"nats that texts of A lose without the first {n} features of A"),
        ("loss on B without them", removed.b, f"nats that texts of B lose without the first {n} features of A"),
        ("loss on A, others removed", removed.control_a, f"the same without {n} other features that fire as often"),
        ("loss on B, others removed", removed.control_b, f"the same without {n} other features that fire as often"),
    )
    return [figure(*row) for row in rows]
