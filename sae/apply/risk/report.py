"""What `sae risk` writes: how well latents foretell the loss or a score of texts, and what removing them does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from feature_store.results.findings import Figure, Finding, Table
from sae.apply.finding import figure, table, write_finding
from sae.apply.removal import CONTROLS, Ablation, ablation, check_removable
from sae.apply.risk.foretelling import Risk, foretell
from sae.apply.text_codes import TextReader
from sae.errors import ConfigError
from sae.foundation.screen import Screen
from sae.text.brought import scored_texts, some_texts

SHOWN, LETTERS = 20, 200
WORST = 3  # the texts of the highest third are those on which removal is tried


@dataclass(frozen=True)
class RiskSettings:
    """Texts, or texts with scores (files); how many, and how many latents to remove."""

    texts: str | None = None
    scores: Path | None = None
    most: int = 400
    remove: int = 10
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` unless there is one source of texts, and numbers make sense."""
        if (self.texts is None) == (self.scores is None):
            raise ConfigError("give --texts FILES (the score is the model's loss), or --scores FILE; one of them.")
        if self.most < 1 or self.remove < 0:
            raise ConfigError(
                f"--most {self.most}, --remove {self.remove}: wanted are 1 or more texts, 0 or more latents."
            )


class _Run(NamedTuple):
    reader: TextReader
    texts: list[str]
    score: np.ndarray
    means: csr_array
    step: Callable[[], None]


def risk_finding(folder: Path, name: str, reader: TextReader, settings: RiskSettings, *, screen: Screen) -> Finding:
    """Reads the texts, foretells their scores, tries removal, and writes the finding `name` of the dictionary."""
    if settings.remove:
        check_removable(reader)
    with screen.progress("risk", 3 + (CONTROLS + 2 if settings.remove else 0), "passes") as progress:
        if settings.scores is not None:
            texts, numbers = scored_texts(settings.scores)
            texts, score = texts[: settings.most], np.array(numbers[: settings.most])
            what, source = "score", settings.scores.name
        else:
            texts = some_texts(str(settings.texts), settings.most)
            score = reader.losses(texts)
            what, source = "loss", Path(str(settings.texts)).name
        progress.step()
        means = reader.read_every(texts).means()
        progress.step()
        risk = foretell(means, score, seed=settings.seed)
        progress.step()
        removed = _removal(_Run(reader, texts, score, means, step=progress.step), risk, settings)

    return write_finding(
        folder, name, system="risk", title=f"What foretells the {what} of {source}",
        summary=f"{len(risk.latents)} latents of {len(texts)} texts foretell their {what} with a held-out R2 of "
        f"{risk.r2.value:.2f}; of scores dealt out anew, {np.mean(risk.null):.2f} on average.",
        settings={"texts": source, "score": what, "n_texts": len(texts), "components": risk.components,
                  "seed": settings.seed},
        figures=_figures(risk, removed), tables=_tables(risk, texts, score),
    )  # fmt: skip


def _removal(run: _Run, risk: Risk, settings: RiskSettings) -> Ablation | None:
    """Removes the latents that raise the score, on the texts of the highest third and on those of the lowest."""
    rising = [latent for latent, weight in zip(risk.latents, risk.weights, strict=True) if weight > 0]
    chosen = rising[: settings.remove]
    if not chosen:
        return None
    order = np.argsort(-run.score, kind="stable")
    n = len(order) // WORST
    worst, best = ([run.texts[place] for place in places] for places in (order[:n], order[-n:]))
    rate = np.asarray(run.means.astype(bool).mean(axis=0)).ravel()
    return ablation(run.reader, (worst, best), chosen, rate, seed=settings.seed, step=run.step)


def _figures(risk: Risk, removed: Ablation | None) -> list[Figure]:
    figures = [
        figure("R2", risk.r2, "share of the score's variance that is foretold on texts held out"),
        figure(
            "R2 of scores dealt out anew", float(np.mean(risk.null)), f"the null: mean of {len(risk.null)} permutations"
        ),
        figure("p", risk.p, "share of the null that does as well, itself counted in"),
    ]
    if removed is None:
        return figures
    n = len(removed.features)
    rows = (
        (
            "loss on the worst, removed",
            removed.a,
            f"nats that the highest third loses without {n} latents that raise it",
        ),
        ("loss on the best, removed", removed.b, "the same on the lowest third"),
        ("loss on the worst, others removed", removed.control_a, f"without {n} other latents that fire as often"),
        ("loss on the best, others removed", removed.control_b, "the same on the lowest third"),
    )
    return [*figures, *(figure(*row) for row in rows)]


def _tables(risk: Risk, texts: list[str], score: np.ndarray) -> list[Table]:
    latents = list(zip(risk.latents, risk.weights, risk.importance, strict=True))
    order = np.argsort(-score, kind="stable")[:SHOWN]
    return [
        table(
            "Latents that carry it",
            {"feature": "feature", "score for one more unit": "number", "times its spread": "number"},
            latents,
        ),
        table(
            "Held-out R2 by the number of components",
            {"components": "number", "R2": "number"},
            [[number, value] for number, value in enumerate(risk.by_components, 1)],
        ),
        table(
            "Texts with the highest score",
            {"text": "text", "score": "number", "foretold": "number"},
            [[texts[place][:LETTERS], score[place], risk.predicted[place]] for place in order],
        ),
    ]
