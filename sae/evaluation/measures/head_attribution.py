"""Whether the heads that a latent's decoder row names are those whose output makes it fire."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.apply.heads.attribution import head_shares
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.interpret.intervals import Interval, mean
from sae.kernels.sparse import rows_of

ROWS, PIECE = 32_768, 8192  # tokens read; firings worked out at a time
LEAST = 10  # firings of a latent


class Agreement(NamedTuple):
    """The rank correlation over heads of both shares by latent, and whether they name the same first head."""

    correlation: Float[Tensor, " latents"]
    same_first: Float[Tensor, " latents"]


def contributions(
    z: Float[Tensor, "firings d"], encoder: Float[Tensor, "firings d"], n_heads: int
) -> Float[Tensor, "firings heads"]:
    """What every head adds to the pre-activation of a latent: <z^k, W_enc^k>, direct feature attribution by head."""
    return (z * encoder).view(len(z), n_heads, -1).sum(2)


def agreement(one: Float[Tensor, "latents heads"], other: Float[Tensor, "latents heads"]) -> Agreement:
    """How alike two tables of shares are, latent by latent."""
    ranks = [_ranks(table) for table in (one, other)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    lengths = [rank.norm(dim=1) for rank in centred]
    correlation = (centred[0] * centred[1]).sum(1) / (lengths[0] * lengths[1]).clamp_min(1e-12)
    return Agreement(correlation, (one.argmax(1) == other.argmax(1)).float())


def _ranks(table: Tensor) -> Tensor:
    return table.argsort(dim=1).argsort(dim=1).float()


class HeadAttribution(Measure):
    """Attribution to heads by weight (the share of the decoder row's norm, Kissane et al. 2024, arXiv 2406.17759) beside
    attribution by activation (the mean over firings of <z^k, W_enc^k>): rank correlation over heads, and how often both name
    the same first head. The baseline pairs each latent with another one's weights.
    """

    order = 33
    meanings: ClassVar[dict[str, str]] = {
        "head_attribution.spearman": "mean rank correlation over heads of weight-based with activation-based attribution",
        "head_attribution.spearman_low": "lower end of its 95 % interval over latents",
        "head_attribution.spearman_high": "upper end of it",
        "head_attribution.other_spearman": "the same with another latent's weights, the baseline",
        "head_attribution.same_first": "share of latents for which both name the same first head",
        "head_attribution.other_same_first": "the same with another latent's weights",
        "head_attribution.latents": f"latents that fire {LEAST} times or more",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries at attn_z, the heads' outputs side by side"""
        config = subject.sae.config
        return config.reads == config.writes and len(config.reads) == 1 and config.writes[0].site == "attn_z"

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae, n_heads = subject.sae, subject.lm.n_heads
        sums = torch.zeros(sae.d_sae, n_heads, device=subject.device)
        counts = torch.zeros(sae.d_sae, device=subject.device)
        n_read = 0
        for batch in subject.batches(ROWS):
            x = sae.prepared(batch.x).x
            code = sae.encode(batch.x)
            row, place = (code.top_acts > 0).nonzero().T
            latents: Int[Tensor, " firings"] = code.top_indices[row, place]
            for rows, ids in zip(row.split(PIECE), latents.split(PIECE), strict=True):
                sums.index_add_(0, ids, contributions(x[rows], rows_of(sae.W_enc.T, ids), n_heads))
            counts += torch.bincount(latents, minlength=sae.d_sae)
            n_read += len(batch.x)
            subject.progress.update(min(n_read, ROWS), ROWS)

        fires = counts >= LEAST
        by_activation = sums[fires] / counts[fires, None]
        by_weight = head_shares(sae, n_heads)[fires]
        if len(by_weight) < 2:
            return {"head_attribution": {"latents": len(by_weight)}}
        true = agreement(by_weight, by_activation)
        other = agreement(by_weight.roll(1, 0), by_activation)
        spearman: Interval = mean(true.correlation.double().cpu().numpy())

        return {
            "head_attribution": {
                "spearman": spearman.value,
                "spearman_low": spearman.low,
                "spearman_high": spearman.high,
                "other_spearman": float(other.correlation.mean()),
                "same_first": float(true.same_first.mean()),
                "other_same_first": float(other.same_first.mean()),
                "latents": len(by_weight),
            }
        }
