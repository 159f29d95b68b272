"""How many bits a code takes: with every activation spelled out, and quantised just finely enough."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae.architectures import Encoding
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import FvuMeter

ROWS = 16_384
BITS_PER_ACTIVATION = 7
TOLERANCE = 0.01
BINS = (2, 4, 8, 16, 32, 64, 128, 256)


class DescriptionLength(Measure):
    """Description lengths in bits per token.

    The plain one is l0 (7 + log2 d_sae): an index and seven bits for every activation. The entropic one quantises each
    latent's activations into equal bins up to its maximum, with the fewest bins (a power of two) that keep the
    reconstruction's error within 1 % of the exact code's, and adds up the entropies of all latents, each seen as
    independent: sum_i H(bin of a_i), silence being one of the bins (after Ayonrinde et al. 2024, arXiv 2410.11179).
    """

    by_default, order = True, 4
    meanings: ClassVar[dict[str, str]] = {
        "description_length.plain_bits": "l0 (7 + log2 d_sae), bits per token",
        "description_length.entropic_bits": "sum of the latents' entropies, quantised to an error of 1 %, bits per token",
        "description_length.bins": "bins per latent that this takes",
    }

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae = subject.sae
        batches = list(subject.batches(ROWS))
        codes = [sae.encode(batch.x) for batch in batches]
        peaks = torch.zeros(sae.d_sae, device=subject.device)
        for code in codes:
            peaks.scatter_reduce_(0, code.top_indices.flatten(), code.top_acts.flatten(), "amax")

        n = sum(len(code.top_acts) for code in codes)
        l0 = sum(int((code.top_acts > 0).sum()) for code in codes) / n
        exact = self._fvu(subject, batches, codes)
        bins, fvu = BINS[0], float("inf")

        for bins in BINS:
            rounded = [_rounded(code, peaks, bins) for code in codes]
            fvu = self._fvu(subject, batches, rounded)
            if fvu <= exact * (1 + TOLERANCE):
                break

        return {
            "description_length": {
                "plain_bits": l0 * (BITS_PER_ACTIVATION + math.log2(sae.d_sae)),
                "entropic_bits": _entropy(codes, peaks, bins, sae.d_sae, n=n),
                "bins": bins,
                "fvu_quantised": fvu,
                "within_tolerance": fvu <= exact * (1 + TOLERANCE),
            }
        }

    def _fvu(self, subject: Subject, batches: list, codes: list[Encoding]) -> float:
        meter = FvuMeter(subject.sae.d_out, subject.device)
        for batch, code in zip(batches, codes, strict=True):
            meter.add(batch.y, subject.sae.decode(code, batch.x))
        return meter.value()


def _levels(code: Encoding, peaks: Tensor, bins: int) -> Tensor:
    """Bin 1..bins of every firing, 0 for silence."""
    share = code.top_acts / peaks[code.top_indices].clamp_min(1e-30)
    return torch.where(code.top_acts > 0, (share * bins).ceil().clamp(1, bins), 0).long()


def _rounded(code: Encoding, peaks: Tensor, bins: int) -> Encoding:
    levels = _levels(code, peaks, bins)
    middle = (levels - 0.5) / bins * peaks[code.top_indices]
    return code._replace(top_acts=torch.where(levels > 0, middle, 0.0))


def _entropy(codes: list[Encoding], peaks: Tensor, bins: int, d_sae: int, *, n: int) -> float:
    counts = torch.zeros(d_sae * (bins + 1), dtype=torch.int64, device=peaks.device)
    for code in codes:
        levels = _levels(code, peaks, bins)
        cells = (code.top_indices * (bins + 1) + levels)[levels > 0]
        counts += torch.bincount(cells, minlength=len(counts))
    counts = counts.view(d_sae, bins + 1)
    counts[:, 0] = n - counts.sum(1)
    p = counts.double() / n
    return float(-(p * p.clamp_min(1e-300).log2()).sum())
