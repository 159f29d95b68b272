"""What the tokens before say of an activation: the predicted part of a temporal sparse autoencoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CONTEXTS = 8  # whose dense codes lie in memory at a time
EPS = 1e-6  # is added to the norm of a layer's prediction before it is divided by, in the units that it was trained in


class ContextAttention(nn.Module):
    """Attention over codes: queries from a token's own code, keys and values from those of the tokens before it."""

    def __init__(self, d_sae: int, n_heads: int, d_key: int):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = nn.Linear(d_sae, d_key), nn.Linear(d_sae, d_key)
        self.value, self.output = nn.Linear(d_sae, d_sae), nn.Linear(d_sae, d_sae)

    def forward(self, code: Float[Tensor, "contexts length d_sae"]) -> Float[Tensor, "contexts length d_sae"]:
        """The code that the context makes likely, not negative; the first token sees zeros."""
        before = F.pad(code[:, :-1], (0, 0, 1, 0))
        query, key, value = (
            table.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for table in (self.query(code), self.key(before), self.value(before))
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.relu(self.output(seen.transpose(1, 2).flatten(2)))


class ContextPrediction(nn.Module):
    """p(x) of every token of a context: what is decoded from the codes that attention expects.

    With r_0 = x and, layer by layer, z = ReLU(r W_enc + b_enc), D = attention(z) W_dec:
    p += D <D, r - b_dec> / (||D|| + eps)^2, r = x - p.

    Paper: Temporal feature analysis, Lubana et al. 2025, arXiv 2511.01836; as SAELens computes it.
    """

    def __init__(self, d_sae: int, n_layers: int, n_heads: int, d_key: int):
        super().__init__()
        self.layers = nn.ModuleList(ContextAttention(d_sae, n_heads, d_key) for _ in range(n_layers))
        self.least_norm: Float[Tensor, ""]
        self.register_buffer("least_norm", torch.tensor(EPS))

    @torch.no_grad()
    def forward(
        self,
        x: Float[Tensor, "contexts length d"],
        *,
        W_enc: Float[Tensor, "d d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d"],
        b_dec: Float[Tensor, " d"],
    ) -> Float[Tensor, "contexts length d"]:
        """p [contexts, length, d], in float32; a few contexts at a time."""
        weights: dict[str, Any] = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        return torch.cat([self._predicted(part.float(), **weights) for part in x.split(CONTEXTS)])

    def _predicted(self, x: Tensor, *, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        predicted = torch.zeros_like(x)
        for layer in self.layers:
            rest = x - predicted
            drawn = layer(F.relu(rest @ W_enc + b_enc)) @ W_dec
            norm = drawn.norm(dim=2, keepdim=True) + self.least_norm
            share = (drawn * (rest - b_dec)).sum(2, keepdim=True) / norm.square()
            predicted = predicted + share * drawn
        return predicted
