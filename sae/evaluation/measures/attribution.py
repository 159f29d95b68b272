"""Whether activation times gradient tells which latents matter, compared with removing latents one by one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.apply.removal import parts_removed
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import spearman
from sae.kernels.sparse import rows_of
from sae.model.hookpoints import Channel, resolve
from sae.stream.harvest import Harvester
from sae.stream.packing import attention_inputs

CONTEXTS, PER_CONTEXT = 24, 16


class Attribution(Measure):
    """Spearman correlation of |a_i <d_i, c>| with the true change of the summed loss when latent i is removed.

    Over random firings in held-out contexts; c is the gradient of the loss, or RelP's coefficient. The baseline is the
    activation alone.
    """

    order = 31
    meanings: ClassVar[dict[str, str]] = {
        "attribution.spearman_gradient": "rank correlation of |activation x <d, gradient>| with |true change of loss|",
        "attribution.spearman_relp": "the same with RelP's coefficient",
        "attribution.spearman_activation": "the same for the activation alone, the baseline",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that read and write one hook point, so that a latent can be removed there"""
        return subject.sae.centred and len(subject.sae.config.reads) == 1

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae, hook, held_out = subject.sae, subject.sae.config.hook, subject.held_out
        channels = tuple(Channel(hook, kind) for kind in ("activation", "gradient", "relp"))
        one_context = held_out.harvester.config.model_copy(update={"batch_contexts": 1})
        harvester = Harvester(subject.lm, channels, one_context, held_out.harvester.packing)
        generator = subject.generator()
        columns: list[Tensor] = []
        n_contexts = min(CONTEXTS, held_out.contexts.n_contexts)

        for number in range(n_contexts):
            part = slice(number, number + 1)
            ids, documents = held_out.contexts.ids[part], held_out.contexts.documents[part]
            harvested = harvester.harvest(ids, documents)
            x, gradient, relp = (harvested.x[channel][0].float() for channel in channels)
            code = sae.encode(x)
            fires = ((code.top_acts > 0) & harvested.keep[0][:, None]).nonzero()
            sampled_firings = fires[torch.randperm(len(fires), generator=generator)[:PER_CONTEXT].to(fires.device)]
            positions, latents = sampled_firings[:, 0], code.top_indices[sampled_firings[:, 0], sampled_firings[:, 1]]
            parts = code.top_acts[sampled_firings[:, 0], sampled_firings[:, 1]][:, None] * rows_of(sae.W_dec, latents)
            if code.deviation is not None:  # back from the token's normalised space
                parts = parts * code.deviation[positions]
            true = self._change(subject, ids, documents, positions, parts=parts)
            scores = [(parts * c[positions]).sum(1).abs() for c in (gradient, relp)]
            columns.append(torch.stack([true.abs(), *scores, parts.norm(dim=1)]).cpu())
            subject.progress.update(number + 1, n_contexts)

        true, by_gradient, by_relp, by_activation = torch.cat(columns, dim=1)
        names = {"gradient": by_gradient, "relp": by_relp, "activation": by_activation}
        correlations = {f"spearman_{name}": spearman(true, score) for name, score in names.items()}

        return {"attribution": {**correlations, "ablations": len(true)}}

    def _change(
        self, subject: Subject, ids: np.ndarray, documents: np.ndarray, positions: Tensor, *, parts: Tensor
    ) -> Tensor:
        """Change of the context's summed loss when each part [n, width] is removed at its position, [n]."""
        place, n = resolve(subject.lm, subject.sae.config.hook), len(positions)
        tokens = torch.from_numpy(np.repeat(ids, n + 1, axis=0).astype(np.int64)).to(parts.device)
        extra = attention_inputs(np.repeat(documents, n + 1, axis=0), subject.held_out.harvester.packing, subject.lm)

        with parts_removed(place, positions, parts, tokens.shape[1]):
            logits = subject.lm.model(input_ids=tokens, use_cache=False, **extra).logits[:, :-1].float()

        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(n + 1, -1).sum(1)

        return loss[:-1] - loss[-1]
