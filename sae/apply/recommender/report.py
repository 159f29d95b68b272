"""What `sae recommend audit` writes: what a dictionary keeps of a recommender, what its latents stand for, what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_store.results.findings import Figure, Finding, Table
from sae.apply.finding import figure, table, write_finding
from sae.apply.recommender.item_concepts import Concepts, Firings, ItemConcept, coherences, concepts_of, item_concepts
from sae.apply.recommender.judged_concepts import JudgedConcept, judged_concepts
from sae.apply.recommender.model import TOP, Ranking
from sae.apply.recommender.recommendations import (
    Histories,
    Reranked,
    firings_of,
    item_vectors,
    read_histories,
    reconstructed,
    rerank,
    untrained,
)
from sae.apply.text_codes import TextReader
from sae.errors import DataError
from sae.foundation.screen import Screen
from sae.interpret.intervals import mean
from sae.interpret.judging.judge import Judge

CONFIDENT = 0.8
REMOVED, ROWS = 50, 500


class _Audit(NamedTuple):
    clean: Ranking
    spliced: Ranking
    labelled: list[ItemConcept]
    reranked: Reranked | None
    control: _Control
    judged: list[JudgedConcept]


class _Control(NamedTuple):
    """Coherence of confident latents, and confidence and coherence of an untrained dictionary's."""

    coherence: np.ndarray
    untrained_confidence: np.ndarray
    untrained_coherence: np.ndarray


def recommender_finding(
    folder: Path, name: str, reader: TextReader, data: Path, *, seed: int, judge: Judge | None = None, most_judged: int = 64,
    screen: Screen,
) -> Finding:  # fmt: skip
    """Audits the dictionary in `folder` of the recommender whose items and histories lie in `data`.

    A judge describes up to `most_judged` latents, drawn at random, and predicts their levels.
    """
    histories = read_histories(data)
    concepts = concepts_of(histories.items)
    if not concepts.names:
        raise DataError(f"{data}: no category or word of a title is common to five items; concepts need some.")
    with screen.progress("audit", 6 if judge else 5, "steps") as progress:
        audit = _audited(
            reader, histories, concepts, seed=seed, tell=progress.update, judge=judge, most_judged=most_judged
        )

    n_labelled, confident = len(audit.labelled), sum(c.confidence >= CONFIDENT for c in audit.labelled)
    return write_finding(
        folder, name, system="recommend", title=f"What latents of {data.name} recommend",
        summary=f"{n_labelled:,} latents have a concept of the items that they recommend, {confident:,} of them with a confidence of "
        f"{CONFIDENT} or more.",
        settings={"items": len(histories.items), "users": len(histories.users), "concepts": len(concepts.names), "seed": seed},
        figures=_figures(audit),
        tables=[_concepts(audit.labelled, concepts), _removals(audit, concepts), *_judged_table(audit.judged)],
    )  # fmt: skip


def _audited(
    reader: TextReader, histories: Histories, concepts: Concepts, *, seed: int, tell: Callable[[int], None], judge: Judge | None,
    most_judged: int,
) -> _Audit:  # fmt: skip
    clean, spliced = reconstructed(reader, histories)
    tell(1)
    firings, samples = firings_of(reader, histories)
    tell(2)
    labelled = item_concepts(firings, concepts, seed)
    tell(3)
    sure = [c for c in labelled if c.confidence >= CONFIDENT and c.beats_null]
    picked = [sure[place] for place in np.random.default_rng(seed).permutation(len(sure))[:REMOVED]]
    reranked = rerank(reader, picked, samples, concepts, histories=histories, seed=seed) if picked else None
    tell(4)
    control = _control(reader, histories, concepts, firings, labelled=labelled, seed=seed)
    tell(5)
    judged: list[JudgedConcept] = []
    if judge:
        drawn = sorted(np.random.default_rng(seed).permutation(len(labelled))[:most_judged].tolist())
        judged = judged_concepts(judge, [labelled[n] for n in drawn], firings, samples, histories=histories, seed=seed)
        tell(6)
    return _Audit(clean, spliced, labelled, reranked, control=control, judged=judged)


def _control(
    reader: TextReader,
    histories: Histories,
    concepts: Concepts,
    firings: Firings,
    *,
    labelled: list[ItemConcept],
    seed: int,
) -> _Control:
    """The same dictionary before training, on the same samples, and how alike the items of confident latents are."""
    vectors = item_vectors(reader, len(histories.items))
    other, _ = firings_of(reader, histories, untrained(reader, seed + 1))
    others = item_concepts(other, concepts, seed)

    def alike(firings: Firings, labelled: list[ItemConcept]) -> np.ndarray:
        values = coherences(firings, vectors, np.array([c.latent for c in labelled], np.int64))
        return values[~np.isnan(values)]

    sure = [c for c in labelled if c.confidence >= CONFIDENT]
    return _Control(alike(firings, sure), np.array([c.confidence for c in others]), alike(other, others))


def _figures(audit: _Audit) -> list[Figure]:
    hit, gain = f"HR@{TOP}", f"NDCG@{TOP}"
    out = [
        figure(hit, mean(audit.clean.hit), "of each user's last item among all that the user has not had"),
        figure(f"{hit}, reconstructed", mean(audit.spliced.hit), "the same from the dictionary's reconstruction"),
        figure(gain, mean(audit.clean.gain), "of the same ranking"),
        figure(f"{gain}, reconstructed", mean(audit.spliced.gain), "the same from the reconstruction"),
        figure(f"{gain}, change", mean(audit.spliced.gain - audit.clean.gain), "reconstruction less model, by user"),
    ]
    if audit.labelled:
        out += _confidence_figures(audit.labelled, audit.control)
    out += _judged_figures(audit.judged)
    if audit.reranked:
        n = audit.reranked.n_latents
        out += [
            figure(
                "concept in the top ten", audit.reranked.concept, f"change of its share, {n} latents removed one by one"
            ),
            figure(
                "concept in the top ten, control", audit.reranked.control, "the same if another such latent is removed"
            ),
            figure(f"{gain}, latent removed", audit.reranked.gain, "change over all users, mean over the latents"),
        ]
    return out


def _confidence_figures(labelled: list[ItemConcept], control: _Control) -> list[Figure]:
    confidence, null, recall, silence = (
        np.array([getattr(c, name) for c in labelled]) for name in ("confidence", "null", "recall", "silence")
    )
    beats = float(np.mean([c.beats_null for c in labelled]))
    before = control.untrained_confidence
    return [
        figure("confidence", mean(confidence), "mean over latents with a concept; 0.5 is chance"),
        figure("confidence, null", mean(null), "with other latents' concepts"),
        figure("confidence, untrained", mean(before), "of latents of the same dictionary before training"),
        figure("beat the null", beats, "share of latents that do better than 19 others' concepts"),
        figure("recall", mean(recall), "share of strong samples that have the concept"),
        figure("silence", mean(silence), "share of random samples that do not"),
        figure(f"{CONFIDENT} or more", float((confidence >= CONFIDENT).mean()), "share of latents with such a confidence"),
        figure(f"{CONFIDENT} or more, untrained", float((before >= CONFIDENT).mean()), "the same before training"),
        figure("coherence", mean(control.coherence), f"of latents with a confidence of {CONFIDENT}: mean cosine of the vectors of "
               "their five strongest items"),
        figure("coherence, untrained", mean(control.untrained_coherence), "the same of all latents before training"),
    ]  # fmt: skip


def _judged_figures(judged: list[JudgedConcept]) -> list[Figure]:
    readable = [c for c in judged if not np.isnan(c.confidence + c.null)]
    if not readable:
        return []
    confidence, null = (np.array([getattr(c, side) for c in readable]) for side in ("confidence", "null"))
    told = f"of {len(readable)} latents, described and predicted by a language model"
    return [
        figure("confidence, judged", mean(confidence), told),
        figure("confidence, judged, null", mean(null), "with another latent's description on the same samples"),
    ]


def _concepts(labelled: list[ItemConcept], concepts: Concepts) -> Table:
    order = sorted(labelled, key=lambda c: (-c.confidence, c.latent))[:ROWS]
    columns = {
        "feature": "feature", "concept": "text", "confidence": "number", "null": "number", "recall": "number",
        "silence": "number", "tested": "number",
    }  # fmt: skip
    rows = [[c.latent, concepts.names[c.concept], c.confidence, c.null, c.recall, c.silence, c.n_tested] for c in order]
    return table("Concepts of the recommended items", columns, rows)


def _judged_table(judged: list[JudgedConcept]) -> list[Table]:
    if not judged:
        return []
    columns = {
        "feature": "feature", "description": "text", "confidence": "number", "null": "number", "recall": "number", "silence": "number",
    }  # fmt: skip
    rows = [[c.latent, c.description, c.confidence, c.null, c.recall, c.silence] for c in judged]
    return [table("Descriptions by a language model", columns, rows)]


def _removals(audit: _Audit, concepts: Concepts) -> Table:
    of = {c.latent: concepts.names[c.concept] for c in audit.labelled}
    rows = audit.reranked.by_latent if audit.reranked else []
    columns = {"feature": "feature", "concept": "text", "change": "number", "other removed": "number"}
    return table(
        "Share of the concept in the top ten when the latent is removed",
        columns,
        [[latent, of[latent], change, other] for latent, change, other in sorted(rows, key=lambda row: row[1])],
    )
