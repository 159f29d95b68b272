"""Which part of each direction at an MLP's hidden layer can do anything: that in the row space of the MLP's output weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.apply.direction import Parts, output_weight, split
from sae.apply.edit import DirectionEdit, EditPlan, edited
from sae.apply.finding import table, write_finding
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.kernels.sparse import rows_of
from sae.model.hookpoints import resolve

ROWS, LATENTS, STEERED, CONTEXTS, TOKENS = 16_384, 4096, 16, 16, 48
LEAST = 0.5  # of the full effect; latents whose row-space part does less are flagged
TINY = 1e-12


def row_effect(
    directions: Float[Tensor, "n d"], parts: Parts, differences: Float[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """The effect of patching along the row-space part alone, as a share of that of patching along the whole direction.

    Patching along a unit direction v sets <v, h> to its value elsewhere, so h changes by <v, difference> v, and the output by
    W_out of that. Below 1 the whole direction owes its effect to what its null-space part reads: the illusion.
    """
    unit, row = F.normalize(directions, dim=1), F.normalize(parts.row, dim=1)
    length = (1 - parts.null_share).clamp_min(0).sqrt()  # of the unit direction's part in the row space
    whole = (unit * differences).sum(1) * length
    return (row * differences).sum(1) / torch.where(whole.abs() > TINY, whole, torch.full_like(whole, torch.nan))


class CausalAudit(Measure):
    """Decoder rows at mlp_hidden split into the row space and the null space of W_out (Makelov, Lange and Nanda 2023,
    arXiv 2311.17030): what lies in the null space moves nothing, but is read when activations are patched along the direction.

    The difference that is patched in is the mean activation where the latent fires less the mean everywhere. The finding
    `causal_audit` lists the latents.
    """

    order = 41
    meanings: ClassVar[dict[str, str]] = {
        "causal_audit.null_share": "mean share of a decoder row's squared norm in the null space of W_out",
        "causal_audit.random_null_share": "the same for random directions",
        "causal_audit.row_effect": "median effect of patching the row-space part alone over that of the whole direction",
        "causal_audit.flagged": f"share of latents whose row-space part has less than {LEAST} of the effect",
        "causal_audit.kl_whole": "KL(clean || changed), nats, of adding directions of median norm at the last token",
        "causal_audit.kl_row": "the same for their row-space parts alone",
        "causal_audit.kl_null": "the same for their null-space parts alone",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries at mlp_hidden"""
        config = subject.sae.config
        return config.reads == config.writes and len(config.reads) == 1 and config.writes[0].site == "mlp_hidden"

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae, hook = subject.sae, subject.sae.config.writes[0]
        w_out = output_weight(resolve(subject.lm, hook))
        generator = subject.generator()
        latents = torch.randperm(sae.d_sae, generator=generator)[:LATENTS].sort().values.to(subject.device)
        latents, differences = _differences(subject, latents)
        rows = rows_of(sae.W_dec, latents)
        parts = split(rows, w_out)
        effect = row_effect(rows, parts, differences)
        random = torch.randn(256, sae.d_out, generator=generator).to(rows.device)
        flagged = effect < LEAST
        kl = _divergences(subject, parts, rows)
        _write(subject, latents, parts.null_share, effect)

        figures = {
            "null_share": float(parts.null_share.mean()),
            "random_null_share": float(split(random, w_out).null_share.mean()),
            "row_effect": float(effect.nanmedian()),
            "flagged": float(flagged.float().mean()),
            "latents": len(latents),
        }
        return {"causal_audit": figures | dict(zip(("kl_whole", "kl_row", "kl_null"), kl, strict=True))}


def _differences(subject: Subject, latents: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """The latents that fire, and for each the mean activation where it does less the mean everywhere."""
    sae = subject.sae
    sums = torch.zeros(len(latents), sae.d_out, device=subject.device)
    counts, total, n = (
        torch.zeros(len(latents), device=subject.device),
        torch.zeros(sae.d_out, device=subject.device),
        0,
    )
    place = torch.full((sae.d_sae,), -1, device=subject.device)
    place[latents] = torch.arange(len(latents), device=subject.device)
    for batch in subject.batches(ROWS):
        code = sae.encode(batch.x)
        row, column = ((code.top_acts > 0) & (place[code.top_indices] >= 0)).nonzero().T
        owner = place[code.top_indices[row, column]]
        sums.index_add_(0, owner, batch.y[row])
        counts += torch.bincount(owner, minlength=len(latents))
        total, n = total + batch.y.sum(0), n + len(batch.y)
        subject.progress.update(n, ROWS)
    fires = counts > 0
    return latents[fires], sums[fires] / counts[fires, None] - total / n


def _divergences(subject: Subject, parts: Parts, rows: Tensor) -> list[float]:
    """Mean KL of adding some whole directions, their row-space parts, and their null-space parts."""
    lm, sae, contexts = subject.lm, subject.sae, subject.held_out.contexts
    tokens = torch.from_numpy(contexts.ids[:CONTEXTS, :TOKENS].astype("int64")).to(lm.device)
    median = subject.held_out.statistics(sae.config.writes[0]).median_norm

    def logits(direction: Tensor | None) -> Tensor:
        edits = () if direction is None else (DirectionEdit(direction, "add", median),)
        with edited(lm, sae, EditPlan(edits, positions="last")):
            return lm.model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float().log_softmax(1)

    clean, out = logits(None), []
    for directions in (rows, parts.row, parts.null):
        kls = [
            F.kl_div(logits(direction), clean, log_target=True, reduction="batchmean")
            for direction in directions[:STEERED]
        ]
        out.append(float(torch.stack(kls).mean()))
    return out


def _write(subject: Subject, latents: Tensor, null_share: Tensor, effect: Tensor) -> None:
    """The finding with the latents whose row-space part does least."""
    order = effect.argsort(stable=True)[:200].tolist()
    rows = [
        [int(latents[n]), float(effect[n]), float(null_share[n]), "illusion" if effect[n] < LEAST else ""]
        for n in order
    ]
    flagged = int((effect < LEAST).sum())
    columns = {"feature": "feature", "row-space effect": "number", "null share": "number", "flag": "text"}
    write_finding(
        subject.folder, "causal_audit", system="eval --measures causal_audit", title="Which directions can do what they seem to do",
        summary=f"{flagged} of {len(latents)} latents owe more than half of the effect of patching to what cannot move the output.",
        settings={"latents": len(latents), "seed": subject.seed}, figures=[],
        tables=[table("Latents by the effect of their row-space part", columns, rows)],
    )  # fmt: skip
