"""What decoder and encoder say by themselves: how alike latents are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.model.unembed import nearest


class Decoder(Measure):
    """Cosines among decoder rows, and of each latent's encoder with its decoder; weights only."""

    by_default, order = True, 5
    meanings: ClassVar[dict[str, str]] = {
        "max_decoder_cosine.mean": "mean over latents of the cosine with the nearest other decoder row",
        "max_decoder_cosine.p95": "its 95th percentile: near 1 means doubled latents",
        "encoder_decoder_cosine": "mean cosine of a latent's encoder and decoder direction",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that write one hook point: rows of several are in several units"""
        return len(subject.sae.config.writes) == 1

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae = subject.sae
        if sae.d_sae < 2:
            return {}

        cosines = nearest(sae.W_dec, 1, subject.device)[1][:, 0]
        figures: dict[str, Any] = {
            "max_decoder_cosine": {"mean": float(cosines.mean()), "p95": float(cosines.quantile(0.95))}
        }
        if sae.centred:
            figures["encoder_decoder_cosine"] = float(F.cosine_similarity(sae.W_enc.T, sae.W_dec).mean())

        return figures
