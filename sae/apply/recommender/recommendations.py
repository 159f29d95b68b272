"""What a dictionary does to the recommendations of its model: reconstruction, and the removal of single latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.apply.edit import EditPlan, FeatureEdit, edited
from sae.apply.recommender.interactions import Item
from sae.apply.recommender.item_concepts import Concepts, Firings, ItemConcept
from sae.apply.recommender.model import (
    FIRST,
    ITEMS_FILE,
    TEXT_FILE,
    TOP,
    Ranking,
    last_logits,
    ranking,
    scores_of,
    windows,
)
from sae.apply.text_codes import TextReader
from sae.architectures import SparseAutoencoder, build
from sae.errors import ArtefactError
from sae.interpret.intervals import Interval, mean

SAMPLES = 40  # per removed latent
WHOLE = EditPlan((), skipped=0, with_error=False)


class Histories(NamedTuple):
    """The items of a recommender, and the items of every user in order (the last two are held out)."""

    items: list[Item]
    users: list[list[int]]


class Reranked(NamedTuple):
    """What the removal of latents with a concept does, means over latents with intervals.

    `concept` is the change of the concept's share among the ten recommended items in the latent's own samples, `control`
    the same if another latent that has a concept is removed in its own samples, `gain` the change of NDCG@10 over all users.
    """

    n_latents: int
    concept: Interval
    control: Interval
    gain: Interval
    by_latent: list[tuple[int, float, float]]


def read_histories(folder: Path) -> Histories:
    """What `sae recommend train` wrote beside the model; raises `ArtefactError` if it is not there."""
    try:
        items = [
            Item(i["id"], i["title"], tuple(i["categories"])) for i in json.loads((folder / ITEMS_FILE).read_bytes())
        ]
        lines = (folder / TEXT_FILE).read_text(encoding="utf-8").splitlines()
        return Histories(items, [json.loads(line)["items"] for line in lines])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder}: no recommender of `sae recommend train` there ({error}). Give its folder: --data FOLDER."
        ) from None


def reconstructed(reader: TextReader, histories: Histories) -> tuple[Ranking, Ranking]:
    """Ranking of every user's last item by the model, and with the reconstruction in place of its activations."""
    users = [user for user in histories.users if len(user) > 2]
    before, targets = [user[:-1] for user in users], [user[-1] for user in users]
    model, length = reader.lm.model, reader.ctx_len
    clean = ranking(last_logits(model, before, length), targets)
    with edited(reader.lm, reader.sae, WHOLE):
        return clean, ranking(last_logits(model, before, length), targets)


@torch.no_grad()
def firings_of(
    reader: TextReader, histories: Histories, sae: SparseAutoencoder | None = None
) -> tuple[Firings, list[list[int]]]:
    """The latents after every position of the training histories and the item recommended there; and each sample's history.

    The item is the likeliest that is not in the history. `sae` codes in place of the reader's dictionary.
    """
    sae = sae or reader.sae
    rows = windows([user[:-2] for user in histories.users if len(user) > 2], reader.ctx_len)
    place = reader.harvester.places[reader.sae.config.hook]
    parts: list[tuple[np.ndarray, ...]] = []
    recommended: list[np.ndarray] = []
    samples: list[list[int]] = []
    for ids in rows.split(64):
        seen: list[Tensor] = []
        handle = place.watch(lambda x, seen=seen: seen.append(x.detach()))
        try:
            scores = scores_of(reader.lm.model, ids)[..., FIRST:].float()
        finally:
            handle.remove()
        mask = ids >= FIRST
        for row, (one, inside) in enumerate(zip(ids.tolist(), mask.sum(1).tolist(), strict=True)):
            history = [token - FIRST for token in one[:inside]]
            for position in range(inside):
                scores[row, position:, history[position]] = -torch.inf
            samples += [history[: position + 1] for position in range(inside)]
        code = sae.encode(seen[0].reshape(*ids.shape, -1)[mask].float())
        acts = code.top_acts.cpu().numpy()
        sample, column = (acts > 0).nonzero()
        first = sum(map(len, recommended))
        parts.append((sample + first, code.top_indices.cpu().numpy()[sample, column], acts[sample, column]))
        recommended.append(scores[mask].argmax(1).cpu().numpy())

    sample, latent, act = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Firings(sample, latent, act, np.concatenate(recommended)), samples


def untrained(reader: TextReader, seed: int) -> SparseAutoencoder:
    """A dictionary like the reader's as it was before training, on other random numbers."""
    sae = build(reader.sae.config, reader.sae.d_in)
    sae.initialise(torch.Generator().manual_seed(seed), reader.sae.b_dec.detach().cpu().float())
    return sae.to(reader.sae.b_dec.device).eval()


def item_vectors(reader: TextReader, n_items: int) -> Float[np.ndarray, "items width"]:
    """The model's own vectors of the items."""
    weight = reader.lm.model.get_input_embeddings().weight
    return weight[FIRST : FIRST + n_items].detach().float().cpu().numpy()


def rerank(
    reader: TextReader,
    chosen: list[ItemConcept],
    samples: list[list[int]],
    concepts: Concepts,
    *,
    histories: Histories,
    seed: int = 0,
) -> Reranked:
    """Removes each latent in its own strong samples and looks at the ten recommended items before and after."""
    rng = np.random.default_rng(seed)
    picked = [[samples[place] for place in rng.permutation(concept.samples)[:SAMPLES].tolist()] for concept in chosen]
    tops = [_tops(reader, concept.latent, part) for concept, part in zip(chosen, picked, strict=True)]
    rows = []
    for number, concept in enumerate(chosen):
        other = int(rng.choice([n for n in range(len(chosen)) if n != number])) if len(chosen) > 1 else number
        rows.append(
            (
                concept.latent,
                _shift(tops[number], concepts, concept.concept),
                _shift(tops[other], concepts, concept.concept),
            )
        )
    gains = _gains(reader, [concept.latent for concept in chosen], histories)
    changes, control = (np.array([row[place] for row in rows]) for place in (1, 2))
    return Reranked(len(chosen), mean(changes), mean(control), mean(gains), by_latent=rows)


def _scores(reader: TextReader, latent: int | None, histories: list[list[int]]) -> Float[Tensor, "samples items"]:
    plan = EditPlan(() if latent is None else (FeatureEdit(latent, "ablate"),), skipped=0)
    with edited(reader.lm, reader.sae, plan):
        return last_logits(reader.lm.model, histories, reader.ctx_len)


def _tops(reader: TextReader, latent: int, histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The ten recommended items of every sample, before and after the removal of a latent."""
    before, after = (_scores(reader, which, histories).topk(TOP, dim=1).indices.numpy() for which in (None, latent))
    return before, after


def _shift(tops: tuple[np.ndarray, np.ndarray], concepts: Concepts, concept: int) -> float:
    """Change of a concept's share among the recommended items."""
    before, after = (float(concepts.has[top, concept].mean()) for top in tops)
    return after - before


def _gains(reader: TextReader, latents: list[int], histories: Histories) -> np.ndarray:
    """Change of NDCG@10 of the users' last items, mean over all users, by removed latent."""
    users = [user for user in histories.users if len(user) > 2]
    before, targets = [user[:-1] for user in users], [user[-1] for user in users]
    clean = ranking(_scores(reader, None, before), targets).gain
    return np.array([(ranking(_scores(reader, latent, before), targets).gain - clean).mean() for latent in latents])
