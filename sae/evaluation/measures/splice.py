"""What the language model loses when the reconstruction takes the place of its activations."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from sae.architectures.settings import batch_of
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import loss_recovered
from sae.model.hookpoints import HookPoint
from sae.stream.packing import attention_inputs, positions_of

Edit = dict[
    HookPoint, tuple[Bool[Tensor, "contexts ctx_len"], Float[Tensor, "_rows _width"]]
]  # hook point -> (mask [contexts, ctx_len], new rows)


def log_probs(
    subject: Subject,
    ids: Int[Tensor, "contexts ctx_len"],
    documents: Integer[np.ndarray, "contexts ctx_len"],
    edit: Edit,
) -> Float[Tensor, "contexts ctx_len-1 vocabulary"]:
    """Log-probabilities [contexts, ctx_len - 1, vocabulary] of the next tokens, with rows replaced at hook points."""
    harvester = subject.held_out.harvester

    def put(hook: HookPoint, x: Tensor) -> Tensor:
        mask, rows = edit[hook]
        flat = x.reshape(*ids.shape, -1).clone()
        flat[mask] = rows.to(x.dtype)
        return flat.reshape(x.shape)

    with ExitStack() as stack:
        for hook in edit:
            stack.callback(harvester.places[hook].watch(lambda x, hook=hook: put(hook, x)).remove)
        extra = attention_inputs(documents, harvester.packing, harvester.lm)
        logits = harvester.lm.model(input_ids=ids, use_cache=False, **extra).logits

    return logits[:, :-1].float().log_softmax(dim=-1)


def kl(
    clean: Float[Tensor, "contexts positions vocabulary"],
    edited: Float[Tensor, "contexts positions vocabulary"],
    scored: Bool[Tensor, "contexts positions"],
) -> Float[Tensor, ""]:
    """Sum over scored positions of KL(clean || edited), context by context: no third copy of the logits is held."""
    rows = zip(clean, edited, scored, strict=True)
    return torch.stack([(c.exp() * (c - e)).sum(-1, dtype=torch.float64)[s].sum() for c, e, s in rows]).sum()


def _cross_entropy(log_probs: Tensor, ids: Tensor, scored: Tensor) -> float:
    """Cross-entropy of the next tokens, summed over the scored positions."""
    return -float(log_probs.gather(2, ids[:, 1:, None])[scored].sum(dtype=torch.float64))


class Splice(Measure):
    """CE and KL (nats per token) of the model with x_hat, 0 or the mean in place of the activations.

    Only positions that were trained on are replaced. CE is over every next token of the same document, or of the whole
    context where documents share attention; KL is KL(clean || replaced) over the same tokens. The mean is that of the
    training stream's first 16,384 tokens. A dictionary of several hook points replaces them all at once, with reconstructions of the clean
    activations; a transcoder replaces its target.
    """

    by_default, order = True, 1
    control_figures = ("ce_increase", "loss_recovered")
    meanings: ClassVar[dict[str, str]] = {
        "ce_increase": "cross-entropy with x_hat spliced in, less that of the untouched model, nats per token",
        "loss_recovered.mean": "(CE_ablated - CE_spliced) / (CE_ablated - CE_clean), ablation by the mean activation",
        "loss_recovered.zero": "the same, ablation by zero",
        "kl.spliced": "KL(clean || spliced), nats per token",
        "ce.clean": "cross-entropy of the untouched model, nats per token",
        "with_gradient_ce_increase": "ce_increase if latents are selected by the gradient, as in training",
    }

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        contexts, harvester, config = subject.held_out.contexts, subject.held_out.harvester, subject.sae.config
        means = {hook: subject.held_out.training_mean(hook) for hook in config.writes}
        n_contexts = min(contexts.n_contexts, max(1, subject.splice_tokens // contexts.ctx_len))
        names = ["spliced", "zero", "mean", *(["with_gradient"] if config.gradient else [])]
        ce, divergence, n_scored = dict.fromkeys(("clean", *names), 0.0), dict.fromkeys(names, 0.0), 0

        for start in range(0, n_contexts, subject.batch_contexts):
            part = slice(start, min(start + subject.batch_contexts, n_contexts))
            documents = contexts.documents[part]
            ids = torch.from_numpy(contexts.ids[part].astype(np.int64)).to(harvester.lm.device)
            edits = self._edits(subject, part, means)
            clean = log_probs(subject, ids, documents, {})
            begins = positions_of(documents, harvester.packing)[:, 1:] == 0
            scored = torch.from_numpy(~begins).to(ids.device)
            ce["clean"] += _cross_entropy(clean, ids, scored)
            for name in names:
                edited = log_probs(subject, ids, documents, edits[name])
                ce[name] += _cross_entropy(edited, ids, scored)
                divergence[name] += float(kl(clean, edited, scored))
            n_scored += int(scored.sum())
            subject.progress.update(part.stop, n_contexts)

        ce = {name: total / n_scored for name, total in ce.items()}
        figures = {
            "tokens_scored": n_scored,
            "ce": {name: ce[name] for name in ("clean", "spliced", "zero", "mean")},
            "kl": {name: divergence[name] / n_scored for name in ("spliced", "zero", "mean")},
            "ce_increase": ce["spliced"] - ce["clean"],
            "loss_recovered": {name: loss_recovered(ce["clean"], ce["spliced"], ce[name]) for name in ("zero", "mean")},
        }

        return figures | ({"with_gradient_ce_increase": ce["with_gradient"] - ce["clean"]} if config.gradient else {})

    def _edits(self, subject: Subject, part: slice, means: dict[HookPoint, Tensor]) -> dict[str, Edit]:
        """The replacements for some contexts, by name."""
        contexts, sae = subject.held_out.contexts, subject.sae
        harvested = subject.held_out.harvester.harvest(contexts.ids[part], contexts.documents[part])
        keep = harvested.keep & subject.held_out.within_norm(harvested.x)
        batch = batch_of(sae.config, {channel: x[keep] for channel, x in harvested.x.items()})
        widths = [len(mean) for mean in means.values()]

        def spread(rows: Tensor) -> Edit:
            return {hook: (keep, block) for hook, block in zip(means, rows.split(widths, dim=1), strict=True)}

        edits = {
            "spliced": spread(sae(batch.x)),
            "zero": spread(torch.zeros_like(batch.y)),
            "mean": spread(torch.cat(list(means.values())).expand_as(batch.y)),
        }
        if batch.gradient is not None:
            edits["with_gradient"] = spread(sae(batch.x, batch.gradient))

        return edits
