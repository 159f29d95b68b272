"""How much of a dictionary another one contains too: matched latents of two seeds, or of two methods."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject

FOUND = 0.7


def matched_cosines(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> Float[Tensor, " matched"]:
    """Cosines of the one-to-one matching of rows of a [n, width] and b [m, width] with the largest sum (Hungarian)."""
    from scipy.optimize import linear_sum_assignment

    cosine = (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).cpu()
    rows, columns = linear_sum_assignment(cosine.numpy(), maximize=True)
    return cosine[torch.from_numpy(rows), torch.from_numpy(columns)]


class Stability(Measure):
    """Cosines of decoder rows with their Hungarian match in each dictionary of --against."""

    order = 21
    meanings: ClassVar[dict[str, str]] = {
        "stability.mean_cosine": "mean cosine of matched decoder rows, over the dictionaries compared with",
        "stability.found_again": f"share of latents whose match has a cosine of at least {FOUND}",
        "stability.random_rows": "mean matched cosine of random unit rows, the baseline",
    }

    def applies(self, subject: Subject) -> bool:
        """with --against a dictionary of the same space"""
        return any(other.d_out == subject.sae.d_out for other in subject.against)

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        rows, generator = subject.sae.W_dec.cpu(), subject.generator()
        others = [other for other in subject.against if other.d_out == subject.sae.d_out]
        matched = [matched_cosines(rows, other.W_dec.cpu()) for other in others]
        random = [torch.randn(rows.shape, generator=generator) for _ in range(2)]
        cosines = torch.cat(matched)

        return {
            "stability": {
                "against": [other.config.name for other in others],
                "mean_cosine": float(cosines.mean()),
                "found_again": float((cosines >= FOUND).double().mean()),
                "random_rows": float(matched_cosines(*random).mean()),
            }
        }
