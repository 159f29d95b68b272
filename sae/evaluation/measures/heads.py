"""How the decoder rows of an attention dictionary spread over the heads of their layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from sae.apply.heads.attribution import head_shares
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.files import writing


class Heads(Measure):
    """Share of every head in every latent's decoder row, written to head_shares.safetensors [d_sae, heads]."""

    by_default, order = True, 6
    meanings: ClassVar[dict[str, str]] = {
        "heads.n": "attention heads of the layer",
        "heads.mean_largest_share": "mean over latents of the largest head's share; 1 / heads means spread evenly",
        "heads.latents_of_one_head": "latents of which one head holds over half",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries at attn_z, the heads' outputs side by side"""
        return [hook.site for hook in subject.sae.config.writes] == ["attn_z"]

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        from safetensors.torch import save_file

        shares = head_shares(subject.sae, subject.lm.n_heads)
        with writing(subject.folder / "head_shares.safetensors") as path:
            save_file({"head_shares": shares.cpu().contiguous()}, path)
        largest = shares.max(dim=1).values
        of_one = int((largest > 0.5).sum())
        return {
            "heads": {"n": shares.shape[1], "mean_largest_share": float(largest.mean()), "latents_of_one_head": of_one}
        }
