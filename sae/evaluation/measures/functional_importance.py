"""How much the rest of the model reads of each latent's direction: the size of what it does to the last residual stream."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sae.apply.finding import table, write_finding
from sae.apply.removal import parts_removed
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import spearman
from sae.kernels.sparse import rows_of
from sae.model.hookpoints import HookPoint
from sae.stream.harvest import Harvester

CONTEXTS, DRAWS, PER_PASS = 32, 4, 8
ROWS = 32_768  # held-out rows that mean activations are taken from
CHECKED, FIRINGS = 16, 12  # contexts, and firings of each that are really removed
LEAST, SHOWN = 0.5, 200


class JacobianGram(NamedTuple):
    """mean of J^T J over tokens [d, d], where J takes an activation h_t to the last residual stream at all positions."""

    gram: Float[Tensor, "d d"]
    n_tokens: int

    def sizes(self, directions: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Root of the mean of ||J d||^2 for every direction."""
        d = directions.double()
        return ((d @ self.gram) * d).sum(1).clamp_min(0).sqrt()

    def of_random(self) -> float:
        """The same for a random unit direction."""
        return float((self.gram.trace() / len(self.gram)).sqrt())

    def effective_dimensions(self) -> float:
        """(sum of eigenvalues)^2 / sum of their squares: how many directions the rest of the model reads, about."""
        return float(self.gram.trace() ** 2 / self.gram.square().sum())


def jacobian_gram(
    harvester: Harvester, hook: HookPoint, ids: Integer[np.ndarray, "contexts ctx_len"], generator: torch.Generator, *, draws: int = DRAWS
) -> JacobianGram:  # fmt: skip
    """The mean of J^T J over the kept tokens of contexts that are documents of their own.

    With v of standard normal numbers and g = J^T v, one backward pass, the mean of g g^T over v is J^T J (Hutchinson).
    """
    lm, place = harvester.lm, harvester.places[hook]
    gram = torch.zeros(place.width, place.width, dtype=torch.float64, device=lm.device)
    n_tokens = 0
    for start in range(0, len(ids), PER_PASS):
        part = ids[start : start + PER_PASS]
        tokens = torch.from_numpy(part.astype(np.int64)).to(lm.device)
        keep = harvester.keep(tokens, np.zeros_like(part)).reshape(-1)
        live: list[Tensor] = []

        def begin(x: Tensor, live: list[Tensor] = live) -> Tensor:
            live.append(x.detach().requires_grad_())
            return live[0]

        handle = place.watch(begin)
        try:
            with torch.enable_grad():
                last = lm.last_stream(tokens)
        finally:
            handle.remove()
        for draw in range(draws):
            v = torch.randn(last.shape, generator=generator).to(last)
            (g,) = torch.autograd.grad(last, live[0], v, retain_graph=draw < draws - 1)
            rows = g.reshape(len(keep), -1)[keep].double()
            gram += rows.T @ rows / draws
        n_tokens += int(keep.sum())
    return JacobianGram(gram / max(n_tokens, 1), n_tokens)


class FunctionalImportance(Measure):
    """Root mean ||J d_i||^2 of every decoder row, J the Jacobian from the hook point to what leaves the last block.

    J^T J is the metric of the local interaction basis (Bushnaq et al. 2024, arXiv 2405.10928), with a dictionary's latents in
    place of its basis, and the last residual stream in place of the next layer. The finding `functional_importance` lists the
    latents that are read most and least.
    """

    order = 42
    meanings: ClassVar[dict[str, str]] = {
        "functional_importance.median": "median over live latents of ||J d||, random unit directions being 1",
        "functional_importance.hardly_read": f"share of live latents with less than {LEAST} of a random direction's",
        "functional_importance.effective_dimensions": "directions that the rest of the model reads, about",
        "functional_importance.spearman": "rank correlation of activation x ||J d|| with the true change of the last stream "
        "when a firing is removed",
        "functional_importance.spearman_activation": "the same for the activation alone, the baseline",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that read and write one hook point before the last layer's end"""
        config, last = subject.sae.config, HookPoint("resid_post", max(subject.lm.blocks.running))
        return subject.sae.centred and len(config.reads) == 1 and config.hook != last

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae, hook, generator = subject.sae, subject.sae.config.hook, subject.generator()
        ids = subject.held_out.contexts.ids[:CONTEXTS]
        gram = jacobian_gram(subject.held_out.harvester, hook, ids, generator)
        subject.progress.update(1, 3)
        relative = (gram.sizes(sae.W_dec) / gram.of_random()).float()
        act = _mean_activations(subject)
        live = act > 0
        subject.progress.update(2, 3)
        true, predicted, alone = _removed(subject, relative, generator)
        subject.progress.update(3, 3)

        latents = live.nonzero()[:, 0]
        _write(subject, latents, relative[latents], act[latents])
        return {
            "functional_importance": {
                "median": float(relative[live].median()),
                "hardly_read": float((relative[live] < LEAST).float().mean()),
                "effective_dimensions": gram.effective_dimensions(),
                "spearman": spearman(true, predicted),
                "spearman_activation": spearman(true, alone),
                "tokens": gram.n_tokens,
                "removed": len(true),
            }
        }


def _mean_activations(subject: Subject) -> Tensor:
    """The mean activation of every latent where it fires; 0 if it never does."""
    sums, counts = (torch.zeros(subject.sae.d_sae, device=subject.device) for _ in range(2))
    for batch in subject.batches(ROWS):
        code = subject.sae.encode(batch.x)
        latents, acts = code.top_indices.flatten(), code.top_acts.flatten()
        sums.index_add_(0, latents, acts)
        counts.index_add_(0, latents, (acts > 0).to(counts.dtype))
    return sums / counts.clamp_min(1)


def _removed(subject: Subject, relative: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The true change of the last stream by the removal of some firings, activation times importance, and the activation."""
    sae, held_out, lm = subject.sae, subject.held_out, subject.lm
    place = held_out.harvester.places[sae.config.hook]
    columns: list[Tensor] = []
    for ids in held_out.contexts.ids[:CHECKED]:
        row = ids[None].astype(np.int64)
        harvested = held_out.harvester.harvest(row, np.zeros_like(row))
        x = next(iter(harvested.x.values()))[0].float()
        code = sae.encode(x)
        fires = ((code.top_acts > 0) & harvested.keep[0][:, None]).nonzero()
        sampled = fires[torch.randperm(len(fires), generator=generator)[:FIRINGS].to(fires.device)]
        positions, latents = sampled[:, 0], code.top_indices[sampled[:, 0], sampled[:, 1]]
        sizes = code.top_acts[sampled[:, 0], sampled[:, 1]]
        if code.deviation is not None:  # back from the token's normalised space
            sizes = sizes * code.deviation[positions, 0]
        parts, n = sizes[:, None] * rows_of(sae.W_dec, latents), len(sampled)

        with parts_removed(place, positions, parts, row.shape[1]):
            last = lm.last_stream(torch.from_numpy(np.repeat(row, n + 1, axis=0)).to(lm.device)).float()
        change = (last[:-1] - last[-1]).flatten(1).norm(dim=1)
        columns.append(torch.stack([change, sizes * relative[latents], sizes]).cpu())
    return list(torch.cat(columns, dim=1))


def _write(subject: Subject, latents: Tensor, relative: Tensor, act: Tensor) -> None:
    """The finding with the latents that are read most, and those that are read least."""
    order = relative.argsort(descending=True, stable=True)
    columns = {"feature": "feature", "||J d||, random: 1": "number", "mean activation": "number", "product": "number"}

    def rows(places: Tensor) -> list[list[object]]:
        return [[int(latents[n]), float(relative[n]), float(act[n]), float(relative[n] * act[n])] for n in places]

    n_hardly = int((relative < LEAST).sum())
    write_finding(
        subject.folder, "functional_importance", system="eval --measures functional_importance",
        title="How much the rest of the model reads of each feature",
        summary=f"{n_hardly} of {len(latents)} features that fire are read less than half as much as a random direction; the "
        f"median feature {float(relative.median()):.2f} times as much.",
        settings={"latents": len(latents), "seed": subject.seed}, figures=[],
        tables=[table("Read most", columns, rows(order[:SHOWN])), table("Read least", columns, rows(order.flip(0)[:SHOWN]))],
    )  # fmt: skip
