"""A dictionary on held-out documents: reconstruction, sparsity, and what splicing it in costs the language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sae.activations import TYPICAL_NORM_MULTIPLE, Activations, Statistics
from sae.architectures import SparseAutoencoder
from sae.harvest import Harvester, attention_inputs
from sae.hookpoints import HookPoint
from sae.metrics import FvuMeter, density, loss_recovered
from sae.section import Count, Section

BATCH_ROWS = 4096


class EvaluateConfig(Section):
    """How much of the held-out stream is used for what."""

    splice_tokens: Count = Field(
        default=8_192, ge=2, description="Tokens for CE and KL with the reconstruction spliced in."
    )
    batch_contexts: Count = Field(default=16, ge=1, description="Contexts per forward pass.")


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, held_out: Activations, statistics: Statistics) -> dict[str, Any]:
    """fvu over all kept rows and over typical rows (norm at most 3 medians), l0, cosine, l2 ratio, dead, density."""
    hook = sae.config.hook
    device = sae.b_dec.device
    all_rows, typical = FvuMeter(sae.d_model, device), FvuMeter(sae.d_model, device)
    fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for g in range(held_out.n_segments):
        for raw in held_out.segment(hook, g).x.split(BATCH_ROWS):
            x = raw.float()
            encoding = sae.encode(x)
            x_hat = sae.decode(encoding)
            inside = x.norm(dim=1) <= TYPICAL_NORM_MULTIPLE * statistics.median_norm
            all_rows.add(x, x_hat)
            typical.add(x[inside], x_hat[inside])
            fired += torch.bincount(encoding.top_indices[encoding.top_acts > 0], minlength=sae.d_sae)
            ratio = x_hat.norm(dim=1) / x.norm(dim=1)
            sums += torch.stack([F.cosine_similarity(x, x_hat).sum(), ratio.sum(), (encoding.top_acts > 0).sum()])
    n = all_rows.rows
    densities = density(fired, n)
    edges = np.arange(-7, 0.5, 0.25)
    logs = densities[densities > 0].log10().cpu().numpy()
    return {
        "rows": n,
        "fvu": all_rows.value(),
        "fvu_typical": typical.value(),
        "typical_rows": typical.rows,
        "cosine": float(sums[0] / n),
        "l2_ratio": float(sums[1] / n),
        "l0": float(sums[2] / n),
        "silent_on_held_out": int((fired == 0).sum()),
        "density_histogram": {"log10_edges": edges.tolist(), "latents": np.histogram(logs, edges)[0].tolist()},
    }


def _spliced_hidden(x: Tensor, keep: Tensor, new: Tensor) -> Tensor:
    """x with the kept positions replaced by the rows `new`; excluded positions stay as the model made them."""
    out = x.clone()
    out[keep] = new.to(x.dtype)
    return out


@torch.no_grad()
def splice(
    sae: SparseAutoencoder,
    harvester: Harvester,
    held_out: Activations,
    config: EvaluateConfig,
    max_norm: float | None,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """CE and KL (nats per token) of the model with x_hat, 0 or the mean in place of the activations.

    Only positions that training kept are replaced, as recorded in the card. CE is over every next token but the
    first; KL is KL(clean || replaced) over the same tokens.
    """
    contexts, hook = held_out.contexts, sae.config.hook
    mean = held_out.segment(hook, 0).x.float().mean(0)
    n_contexts = min(contexts.n_contexts, max(1, config.splice_tokens // contexts.ctx_len))
    replacements: dict[str, Callable[[Tensor], Tensor]] = {
        "spliced": lambda rows: sae(rows.float()),
        "zero": torch.zeros_like,
        "mean": lambda rows: mean.expand_as(rows),
    }
    ce = dict.fromkeys(("clean", *replacements), 0.0)
    kl = dict.fromkeys(replacements, 0.0)
    scored = 0
    for start in range(0, n_contexts, config.batch_contexts):
        rows = slice(start, min(start + config.batch_contexts, n_contexts))
        ids = torch.from_numpy(contexts.ids[rows].astype(np.int64)).to(harvester.lm.device)
        keep = harvester.keep(ids)
        extra = attention_inputs(contexts.documents[rows], harvester.packing, harvester.lm)
        clean = _log_probs(harvester, ids, extra, hook, None)
        targets = ids[:, 1:, None]
        ce["clean"] -= float(clean.gather(2, targets).sum(dtype=torch.float64))
        for name, replace in replacements.items():
            edited = _log_probs(harvester, ids, extra, hook, (keep, replace, max_norm))
            ce[name] -= float(edited.gather(2, targets).sum(dtype=torch.float64))
            kl[name] += float(_kl(clean, edited))
        scored += targets.numel()
        report(rows.stop, n_contexts)
    ce = {name: total / scored for name, total in ce.items()}
    kl = {name: total / scored for name, total in kl.items()}
    return {
        "tokens_scored": scored,
        "ce": ce,
        "kl": kl,
        "ce_increase": ce["spliced"] - ce["clean"],
        "loss_recovered": {name: loss_recovered(ce["clean"], ce["spliced"], ce[name]) for name in ("zero", "mean")},
    }


def _kl(clean: Tensor, edited: Tensor) -> Tensor:
    """Sum over positions of KL(clean || edited), context by context so that no third copy of the logits is held."""
    parts = [(c.exp() * (c - e)).sum(dtype=torch.float64) for c, e in zip(clean, edited, strict=True)]
    return torch.stack(parts).sum()


def _log_probs(harvester: Harvester, ids: Tensor, extra: dict[str, Tensor], hook: HookPoint, edit: Any) -> Tensor:
    """Log-probabilities [contexts, ctx_len - 1, vocabulary] of the next tokens, with an edit at the hook point."""

    def see(x: Tensor) -> Tensor | None:
        if edit is None:
            return None
        keep, replace, max_norm = edit
        flat = x.reshape(*ids.shape, -1)
        if max_norm is not None:
            keep = keep & (flat.float().norm(dim=-1) <= max_norm)
        return _spliced_hidden(flat, keep, replace(flat[keep])).reshape(x.shape)

    handle = harvester.places[hook].watch(see)
    try:
        logits = harvester.lm.model(input_ids=ids, use_cache=False, **extra).logits
    finally:
        handle.remove()
    return logits[:, :-1].float().log_softmax(dim=-1)


def evaluate(
    sae: SparseAutoencoder,
    held_out: Activations,
    statistics: Statistics,
    config: EvaluateConfig,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """All metrics of one dictionary on the held-out stream."""
    found = reconstruction(sae, held_out, statistics)
    return found | splice(sae, held_out.harvester, held_out, config, statistics.max_norm, report)
