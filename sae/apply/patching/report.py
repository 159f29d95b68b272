"""What `sae patch` writes: how well gradients foretell patching, by site and layer, and the latents that a prediction hangs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from feature_store.results.findings import Figure, Finding, Table
from sae.apply.finding import figure, table, write_finding
from sae.apply.patching.components import (
    METHODS,
    SITES,
    ComponentEffects,
    PairReading,
    Patcher,
    component_effects,
    read_pair,
)
from sae.apply.patching.latents import (
    LatentChanges,
    WholeEffects,
    latent_changes,
    latent_effects,
    single_effects,
    whole_effects,
)
from sae.apply.patching.prompts import PairIds, ids_of, indirect_objects, read_pairs
from sae.apply.removal import check_removable
from sae.apply.text_codes import TextReader
from sae.errors import ConfigError
from sae.foundation.screen import Screen
from sae.interpret.intervals import Interval, mean

ROUNDS = 500  # resamplings of pairs behind an interval
PER_PAIR = 48  # changes of latents that are patched one by one
SHOWN = 20
FEWEST_PAIRS = 4


@dataclass(frozen=True)
class PatchSettings:
    """Pairs of prompts (a file, or made of names), how many, and the seed of what is drawn."""

    pairs: Path | None = None
    most: int = 12
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for too few pairs."""
        if self.most < FEWEST_PAIRS:
            raise ConfigError(f"--most {self.most}: wanted are {FEWEST_PAIRS} or more pairs.")


class _Pair(NamedTuple):
    ids: PairIds
    reading: PairReading
    components: ComponentEffects
    changes: LatentChanges
    rows: np.ndarray  # of the changes that are patched one by one
    single: np.ndarray
    whole: WholeEffects


class _Column(NamedTuple):
    """Effects of all pairs at one place: true ones, estimates by method and sizes, one array per pair each."""

    true: list[np.ndarray]
    estimates: dict[str, list[np.ndarray]]
    sizes: list[np.ndarray]


def patch_finding(folder: Path, name: str, reader: TextReader, settings: PatchSettings, *, screen: Screen) -> Finding:
    """Patches components and latents on every pair, and writes the finding `name` of the dictionary.

    The model computes in float32, because the smallest effects would be lost in bfloat16.
    """
    check_removable(reader)
    lm, hook = reader.lm, reader.sae.config.reads[0]
    lm.cast(torch.float32)
    texts = read_pairs(settings.pairs) if settings.pairs else indirect_objects(lm, settings.most, settings.seed)
    ids = [ids_of(lm, pair) for pair in texts[: settings.most]]
    if len(ids) < FEWEST_PAIRS:
        raise ConfigError(f"{settings.pairs}: {len(ids)} pairs; wanted are {FEWEST_PAIRS} or more.")

    patcher, rng = Patcher(lm, (hook,)), np.random.default_rng(settings.seed)
    with screen.progress("patch", len(ids) + 1, "pairs") as progress:
        pairs = [_measured(patcher, reader, pair, rng, step=progress.step) for pair in ids]
        features = _features(patcher, reader, pairs)
        progress.step()

    whole = sum(pair.whole.code for pair in pairs) / (sum(pair.whole.activation for pair in pairs) or float("nan"))
    by_site = {site: _of_site(patcher, pairs, site) for site in SITES}
    by_site["latents"] = _of_latents(pairs)
    by_site = {site: column for site, column in by_site.items() if column.true}
    source = settings.pairs.name if settings.pairs else "indirect objects"
    return write_finding(
        folder, name, system="patch", title=f"What predictions hang on: {source}", summary=_summary(by_site, whole, len(pairs)),
        settings={"pairs": source, "n_pairs": len(pairs), "seed": settings.seed},
        figures=_figures(pairs, by_site, whole, settings.seed),
        tables=[features, *_by_position(patcher, pairs[0], texts[0].clean), _by_layer(patcher, pairs), _ranks(by_site)],
    )  # fmt: skip


def _measured(
    patcher: Patcher, reader: TextReader, ids: PairIds, rng: np.random.Generator, *, step: Callable[[], None]
) -> _Pair:
    hook = reader.sae.config.reads[0]
    reading = read_pair(patcher, ids)
    changes = latent_changes(reader.sae, hook, ids, reading)
    rows = rng.permutation(len(changes.latents))[:PER_PAIR]
    single = single_effects(patcher, hook, ids, reading, changes=changes, rows=rows)
    whole = whole_effects(patcher, hook, ids, reading, changes=changes)
    components = component_effects(patcher, ids, reading)
    step()
    return _Pair(ids, reading, components, changes, rows=rows, single=single, whole=whole)


def _features(patcher: Patcher, reader: TextReader, pairs: list[_Pair]) -> Table:
    """The latents of the largest mean estimate by RelP, with the true effect of their changes."""
    hook = reader.sae.config.reads[0]
    estimate = {method: np.zeros(reader.sae.d_sae) for method in METHODS}
    times = np.zeros(reader.sae.d_sae, np.int64)
    for pair in pairs:
        latents = pair.changes.latents.cpu().numpy()
        times[np.unique(latents)] += 1
        for method in METHODS:
            np.add.at(estimate[method], latents, pair.changes.estimates[method] / len(pairs))

    order = np.argsort(-np.abs(estimate["relp"]), kind="stable")[:SHOWN].tolist()
    true = [
        latent_effects(patcher, hook, pair.ids, pair.reading, changes=pair.changes, latents=order) for pair in pairs
    ]
    means = np.mean(true, axis=0)
    rows = [
        [latent, means[place], *(estimate[method][latent] for method in ("relp", "gradient")), int(times[latent])]
        for place, latent in enumerate(order)
        if times[latent]
    ]
    columns = {
        "feature": "feature",
        "effect": "number",
        "by RelP": "number",
        "by gradient": "number",
        "pairs": "number",
    }
    return table("Features that the predictions hang on", columns, rows)


def _of_site(patcher: Patcher, pairs: list[_Pair], site: str, layer: int | None = None) -> _Column:
    places = [n for n, hook in enumerate(patcher.components) if hook.site == site and layer in (None, hook.layer)]
    if not places:
        return _Column([], {}, [])
    parts = [pair.components for pair in pairs]
    return _Column(
        [part.true[places].ravel() for part in parts],
        {method: [part.estimates[method][places].ravel() for part in parts] for method in METHODS},
        [part.sizes[places].ravel() for part in parts],
    )


def _of_latents(pairs: list[_Pair]) -> _Column:
    return _Column(
        [pair.single for pair in pairs],
        {method: [pair.changes.estimates[method][pair.rows] for pair in pairs] for method in METHODS},
        [pair.changes.parts.norm(dim=1).double().cpu().numpy()[pair.rows] for pair in pairs],
    )


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's; NaN if either does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _pearson(true: list[np.ndarray], estimates: list[np.ndarray], rng: np.random.Generator) -> Interval:
    """Over all pairs, with an interval from resampled pairs."""
    draws = []
    for _ in range(ROUNDS):
        picks = rng.integers(0, len(true), len(true))
        draws.append(correlation(*(np.concatenate([x[pick] for pick in picks]) for x in (true, estimates))))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(correlation(np.concatenate(true), np.concatenate(estimates)), float(low), float(high))


def _rank_of_sizes(true: list[np.ndarray], estimates: list[np.ndarray]) -> float:
    """Spearman's correlation of the sizes."""
    return correlation(*(rankdata(np.abs(np.concatenate(x))) for x in (true, estimates)))


def _figures(pairs: list[_Pair], by_site: dict[str, _Column], whole: float, seed: int) -> list[Figure]:
    rng = np.random.default_rng(seed)
    clean, corrupt = (
        mean(np.array([getattr(pair.components, side) for pair in pairs])) for side in ("clean", "corrupt")
    )
    figures = [
        figure("M, clean", clean, "logit of the answer minus that of the wrong one, in the clean prompts"),
        figure("M, corrupt", corrupt, "the same in the corrupt prompts"),
        figure(
            "share that latents carry",
            whole,
            "effect of all latents' changes at the hook point, by that of the activation's",
        ),
    ]
    for site, column in by_site.items():
        for method in METHODS:
            value = _pearson(column.true, column.estimates[method], rng)
            figures.append(
                figure(f"{method}, {site}", value, "correlation of the estimate with true patching (Pearson)")
            )
    return figures


def _by_layer(patcher: Patcher, pairs: list[_Pair]) -> Table:
    sites = [site for site in SITES if any(hook.site == site for hook in patcher.components)]
    columns = {"layer": "number"}
    for site in sites:
        columns |= {f"{site}: size of effect": "number", f"{site}: gradient": "number", f"{site}: RelP": "number"}
    rows = []
    for layer in sorted({hook.layer for hook in patcher.components}):
        row: list[object] = [layer]
        for site in sites:
            column = _of_site(patcher, pairs, site, layer)
            true = np.concatenate(column.true) if column.true else np.zeros(0)
            size = float(np.abs(true).mean()) if len(true) else float("nan")
            pearson = [
                correlation(true, np.concatenate(column.estimates[method])) if len(true) else float("nan")
                for method in ("gradient", "relp")
            ]
            row += [size, *pearson]
        rows.append(row)
    return table("By layer: mean size of the true effect, and the correlation of both estimates with it", columns, rows)


def _by_position(patcher: Patcher, pair: _Pair, text: str) -> list[Table]:
    """The true effects of one pair as pictures, a row per layer and a column per token from the first difference on."""
    tokens = patcher.lm.tokenizer.convert_ids_to_tokens(pair.ids.clean[pair.ids.first :].tolist())
    words = [patcher.lm.tokenizer.convert_tokens_to_string([token]).strip() for token in tokens]
    columns = {"layer": "text", **{f"{pair.ids.first + n} {word}": "number" for n, word in enumerate(words)}}
    tables = []
    for site in SITES:
        rows = [
            [f"layer {hook.layer}", *pair.components.true[number].tolist()]
            for number, hook in enumerate(patcher.components) if hook.site == site
        ]  # fmt: skip
        if rows:
            tables.append(table(f"{site}: true effect by layer and token of “{text}”", columns, rows, is_shaded=True))
    return tables


def _ranks(by_site: dict[str, _Column]) -> Table:
    columns = {
        "site": "text",
        **{method: "number" for method in METHODS},
        "size of the change alone": "number",
        "patched": "number",
    }
    rows = [
        [
            site,
            *(_rank_of_sizes(column.true, column.estimates[method]) for method in METHODS),
            _rank_of_sizes(column.true, column.sizes),
            sum(map(len, column.true)),
        ]
        for site, column in by_site.items()
    ]
    return table("Rank correlation of sizes with the size of the true effect", columns, rows)


def _summary(by_site: dict[str, _Column], whole: float, n_pairs: int) -> str:
    def value(site: str, method: str) -> str:
        column = by_site[site]
        return f"{correlation(np.concatenate(column.true), np.concatenate(column.estimates[method])):.2f}"

    told = "; ".join(f"{site} {value(site, 'gradient')} and {value(site, 'relp')}" for site in by_site)
    return (
        f"Over {n_pairs} pairs the estimates of gradients and of RelP correlate with true patching: {told}. All latents' changes "
        f"together have {whole:.0%} of the effect of the activation's."
    )
