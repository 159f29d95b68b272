"""What `sae heads` writes: what heads and source positions latents come from, what every head holds, and the test of long prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from feature_store import queries
from feature_store.results.attributions import Attribution, write_attributions
from feature_store.results.findings import Figure, Finding, Table
from feature_store.store import Store
from sae.apply.finding import figure, finding_folder, table, write_finding
from sae.apply.heads.attribution import FiringAttribution, attribute_firings, check_attributable, head_shares
from sae.apply.heads.firings import StoredFiring, StoredText, most_frequent, strongest_firings
from sae.apply.heads.prefix import LONGEST, Corruption, by_prefix_length, corruption
from sae.apply.heads.upstream import Edge, check_upstream, recursive_attribution
from sae.apply.text_codes import TextReader
from sae.architectures import SparseAutoencoder
from sae.errors import ArtefactError, ConfigError
from sae.foundation.screen import Screen
from sae.interpret.intervals import mean, proportion

TOP = 10  # features of a head that are looked at
NAMED = 3  # heads of a feature
INDUCES = 0.1  # mean attention after a long prefix from which on real text is tried too
CONTEXTS_READ = 400  # of real text
DIGITS = 4
KINDS = ("this token", "the token before", "the first token", "after an earlier copy", "an earlier copy", "elsewhere")


@dataclass(frozen=True)
class HeadsSettings:
    """How many features and firings of each are attributed, on how many the earlier dictionaries are asked, how many prefixes."""

    features: int = 100_000
    contexts: int = 5
    traced_back: int = 64
    prefixes: int = 100
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        if min(self.features, self.contexts, self.traced_back, self.prefixes) < 1:
            raise ConfigError(
                f"--features {self.features}, --contexts {self.contexts}, --traced-back {self.traced_back}, --prefixes "
                f"{self.prefixes}: wanted are 1 or more of each."
            )


class _Attributed(NamedTuple):
    stored: list[StoredFiring]
    parts: list[FiringAttribution]
    kinds: list[str]


def heads_finding(
    folder: Path, name: str, reader: TextReader, earlier: Mapping[str, SparseAutoencoder], *, settings: HeadsSettings,
    screen: Screen,
) -> Finding:  # fmt: skip
    """Attributes the strongest firings, tests the layer's heads, and writes the finding `name` with attributions.duckdb."""
    hook = check_attributable(reader.sae)
    check_upstream(reader.lm, reader.sae, earlier)
    if not (folder / "store").exists():
        raise ArtefactError(f"{folder}: no feature store, whose contexts are attributed. `sae index` makes one.")

    with closing(Store(folder / "store")) as store:
        text = StoredText(store)
        features = most_frequent(store, settings.features)
        attributed = _attributed(reader, text, features, settings, screen=screen)
        edges = _edges(reader, folder.name, earlier, attributed, settings=settings, screen=screen)
        lengths = _prefixes(reader, hook.layer, settings, screen)
        tried = _tried_on_text(reader, hook.layer, text, lengths, seed=settings.seed)
        shares = head_shares(reader.sae, reader.lm.n_heads)
        concept_of = {f: c.concept for c in queries.concepts(store) if c.parent is None for f in c.features}
        tables = [
            _by_feature(attributed, shares), _by_head(reader.sae, shares, features, concept_of), _by_length(lengths),
            *_corruptions(tried), *_upstream(edges, store),
        ]  # fmt: skip

    figures = _figures(reader, attributed, edges, lengths)
    finding = write_finding(
        folder, name, system="heads", title=f"Where the features of {hook} come from",
        summary=_summary(attributed, tables[1], lengths),
        settings={"features": len(features), "contexts": settings.contexts, "earlier": ", ".join(earlier) or None,
                  "prefixes": settings.prefixes, "seed": settings.seed},
        figures=figures, tables=tables,
    )  # fmt: skip
    write_attributions(finding_folder(folder, name), map(_row, attributed.stored, attributed.parts))
    return finding


def _attributed(
    reader: TextReader, text: StoredText, features: list[int], settings: HeadsSettings, *, screen: Screen
) -> _Attributed:
    stored = list(strongest_firings(text, features, settings.contexts, packing=reader.harvester.packing))
    with screen.progress("attribute", len(stored), "firings") as progress:
        parts = attribute_firings(reader.lm, reader.sae, [s.firing for s in stored], tell=progress.update)
    kinds = [source_kind(s.firing.ids, int(p.by_source.argmax())) for s, p in zip(stored, parts, strict=True)]
    return _Attributed(stored, parts, kinds)


def source_kind(ids: Int[np.ndarray, " length"], source: int) -> str:
    """What the source position of a firing at the last of `ids` is to it, one of `KINDS`."""
    last = len(ids) - 1
    if source == last:
        return KINDS[0]
    if source == last - 1:
        return KINDS[1]
    if source == 0:
        return KINDS[2]
    if ids[source - 1] == ids[last]:
        return KINDS[3]
    return KINDS[4] if ids[source] == ids[last] else KINDS[5]


def _edges(
    reader: TextReader, name: str, earlier: Mapping[str, SparseAutoencoder], attributed: _Attributed, *,
    settings: HeadsSettings, screen: Screen,
) -> list[Edge]:  # fmt: skip
    """The way back of the strongest firing of the features that fire most often."""
    if not earlier:
        return []
    strongest = {s.firing.latent: s.firing for s in reversed(attributed.stored)}
    features = list(dict.fromkeys(s.firing.latent for s in attributed.stored))[: settings.traced_back]
    with screen.progress("trace back", 1 + len(earlier), "layers") as progress:
        start = (name, reader.sae)
        return recursive_attribution(reader.lm, start, [strongest[f] for f in features], earlier, step=progress.step)


def _prefixes(
    reader: TextReader, layer: int, settings: HeadsSettings, screen: Screen
) -> Float[np.ndarray, "lengths heads"]:
    with screen.progress("prefixes", LONGEST, "lengths") as progress:
        return by_prefix_length(reader.lm, layer, n=settings.prefixes, seed=settings.seed, step=progress.step)


def _tried_on_text(
    reader: TextReader, layer: int, text: StoredText, lengths: Float[np.ndarray, "lengths heads"], *, seed: int
) -> list[Corruption]:
    heads = np.flatnonzero(lengths[-1] >= INDUCES).tolist()
    return [corruption(reader.lm, layer, text.contexts(CONTEXTS_READ), head=head, seed=seed) for head in heads]


def _row(stored: StoredFiring, parts: FiringAttribution) -> Attribution:
    """A row of attributions.duckdb; contributions in units of the activation, to four digits."""
    by_source, by_head = ([float(f"{x:.{DIGITS}g}") for x in column] for column in parts)
    return Attribution(
        stored.firing.latent, stored.rank, stored.document, stored.position, act=stored.act,
        token_ids=stored.firing.ids.tolist(), by_source=by_source, by_head=by_head,
    )  # fmt: skip


def _by_feature(attributed: _Attributed, shares: torch.Tensor) -> Table:
    """What most firings of every feature read, and the heads that carry it."""
    by_feature: dict[int, list[int]] = {}
    for number, stored in enumerate(attributed.stored):
        by_feature.setdefault(stored.firing.latent, []).append(number)
    rows = []
    for feature, numbers in by_feature.items():
        heads = np.mean([attributed.parts[n].by_head / attributed.parts[n].by_head.sum() for n in numbers], axis=0)
        kind, times = Counter(attributed.kinds[n] for n in numbers).most_common(1)[0]
        sources = [attributed.parts[n].by_source for n in numbers]
        back = float(np.median([len(x) - 1 - int(x.argmax()) for x in sources]))
        strongest = float(np.mean([x.max() / x.sum() for x in sources]))
        by_weight = shares[feature].double().cpu().numpy()
        rows.append(
            [feature, kind, times / len(numbers), back, strongest, _first_heads(heads), _first_heads(by_weight)]
        )
    columns = {
        "feature": "feature", "reads": "text", "in share of contexts": "number", "tokens back": "number",
        "share of the strongest token": "number", "heads by activation": "text", "heads by weight": "text",
    }  # fmt: skip
    return table("What features read, in their strongest contexts", columns, rows)


def _first_heads(shares: np.ndarray) -> str:
    """The three heads with the largest shares, in words."""
    order = np.argsort(-shares, kind="stable")[:NAMED].tolist()
    return ", ".join(f"{head} ({shares[head]:.0%})" for head in order)


def _by_head(sae: SparseAutoencoder, shares: torch.Tensor, features: list[int], concept_of: dict[int, int]) -> Table:
    """The features with the largest share of every head, and how much they have to do with each other."""
    live = torch.tensor(features, device=shares.device)
    blocks = torch.nn.functional.normalize(sae.W_dec.detach().view(sae.d_sae, shares.shape[1], -1).float(), dim=2)
    rows = []
    for head in range(shares.shape[1]):
        top = live[shares[live, head].argsort(descending=True, stable=True)[:TOP]]
        alike, every = (blocks[ids, head] @ blocks[ids, head].T for ids in (top, live[: 10 * TOP]))
        members = top.tolist()
        groups = {concept_of.get(f, -1 - f) for f in members}
        rows.append(
            [head, members, float(shares[top, head].mean()), len(groups), _off_diagonal(alike), _off_diagonal(every)]
        )
    columns = {
        "head": "number", "features": "features", "share of the head": "number", "groups among them": "number",
        "cosine": "number", "cosine of others": "number",
    }  # fmt: skip
    return table(f"Heads, and the {TOP} features with most of their weight in each", columns, rows)


def _off_diagonal(cosines: torch.Tensor) -> float:
    n = len(cosines)
    return float((cosines.sum() - cosines.trace()) / max(n * (n - 1), 1))


def _by_length(lengths: Float[np.ndarray, "lengths heads"]) -> Table:
    columns = {"head": "text", **{str(length): "number" for length in range(1, LONGEST + 1)}}
    rows = [[f"head {head}", *column] for head, column in enumerate(lengths.T.tolist())]
    title = "Attention to what followed the first copy of a stretch of random tokens, by its length"
    return table(title, columns, rows, is_shaded=True)


def _corruptions(tried: Sequence[Corruption]) -> list[Table]:
    rows = []
    for one in tried:
        if len(one.text) > 1:
            rows.append([one.head, len(one.text), *(float(x.mean()) for x in (one.text, one.corrupt, one.control))])
    columns = {"head": "number", "places": "number", "as it is": "number", "token before the copy replaced": "number",
               "another token replaced": "number"}  # fmt: skip
    return [table("The same on real text, where two tokens agree: mean attention", columns, rows)] if rows else []


def _upstream(edges: list[Edge], store: Store) -> list[Table]:
    """A row for every step back and earlier dictionary: its strongest latent."""
    if not edges:
        return []
    rows = []
    for edge in edges:
        ids = edge.firing.ids
        token = store.vocabulary.shown(int(ids[edge.source.position])).replace("\n", "\\n")
        strongest = [(other, *latents[0]) for other, latents in edge.source.latents.items()] or [(None, None, None)]
        for other, latent, share in strongest:
            rows.append(
                [edge.first_latent, edge.depth, edge.dictionary, edge.firing.latent, token, len(ids) - 1 - edge.source.position,
                 edge.source.share, other, latent, share]
            )  # fmt: skip
    order = {latent: place for place, latent in enumerate(dict.fromkeys(edge.first_latent for edge in edges))}
    rows.sort(key=lambda row: (order[row[0]], row[1], -(row[-1] or 0.0)))
    columns = {
        "feature": "feature", "steps back": "number", "of": "text", "latent": "number", "strongest token": "text",
        "tokens back": "number", "its share": "number", "earlier dictionary": "text", "earlier latent": "number",
        "share of the latent": "number",
    }  # fmt: skip
    return [table("What the strongest firings come from, latent by latent", columns, rows)]


def _figures(
    reader: TextReader, attributed: _Attributed, edges: list[Edge], lengths: Float[np.ndarray, "lengths heads"]
) -> list[Figure]:
    n = len(attributed.stored)
    counts = Counter(attributed.kinds)
    strongest = np.array([p.by_source.max() / p.by_source.sum() for p in attributed.parts])
    sae = reader.sae
    bias = (
        (sae.b_enc - sae.b_dec @ sae.W_enc).detach().float().cpu().numpy()
        if sae.centred
        else sae.b_enc.detach().float().cpu().numpy()
    )
    again = np.array(
        [p.by_head.sum() + bias[s.firing.latent] for s, p in zip(attributed.stored, attributed.parts, strict=True)]
    )
    acts = np.array([s.act for s in attributed.stored])
    out = [
        figure("firings", float(n), "firings that were attributed"),
        figure("off by", float(np.median(np.abs(again - acts) / acts)), "median difference of the attributions' sum, with biases, "
               "from the stored activation, as a share of it"),
        figure("share of the strongest token", mean(strongest), "of a firing's pre-activation without biases, mean"),
    ]  # fmt: skip
    for kind in KINDS:
        out.append(
            figure(f"reads {kind}", proportion(counts[kind], n), "share of firings whose strongest source it is")
        )
    out.append(
        figure(
            "most by a long prefix",
            float(lengths[-1].max()),
            f"largest mean attention of a head after {LONGEST} tokens",
        )
    )
    out.append(figure("most by one token", float(lengths[0].max()), "the same after one token"))
    if edges:
        shares = [
            max(rows[0][1] for rows in e.source.latents.values()) for e in edges if e.depth == 0 and e.source.latents
        ]
        out.append(figure("share of one earlier latent", mean(np.array(shares)), "of the pre-activation, the strongest at the "
                          "strongest token, mean over features"))  # fmt: skip
    return out


def _summary(attributed: _Attributed, heads: Table, lengths: Float[np.ndarray, "lengths heads"]) -> str:
    counts = Counter(attributed.kinds)
    said = ", ".join(f"{kind} in {counts[kind] / len(attributed.kinds):.0%}" for kind, _ in counts.most_common(3))
    several = sum(isinstance(row[3], int) and row[3] > 1 for row in heads.rows)
    head = int(lengths[-1].argmax())
    return (
        f"The strongest source of a firing is {said} of {len(attributed.kinds):,} firings. The {TOP} features of a head are of more than one "
        f"group in {several} of {len(heads.rows)} heads. Head {head} attends most to what followed a repeated stretch: "
        f"{lengths[0, head]:.2f} after one token, {lengths[-1, head]:.2f} after {LONGEST}."
    )
