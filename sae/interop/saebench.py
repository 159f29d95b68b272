"""A dictionary as SAEBench's evaluations want it: dense encode and decode, weights, and a `cfg`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.interop.hook_names import hook_name


class SaeBenchAdapter(nn.Module):
    """Wraps a dictionary: `encode` gives dense activations [..., d_sae], `decode` takes them, `forward` reconstructs.

    Carries W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc, b_dec, device, dtype and `cfg` with the fields that
    SAEBench 0.6 reads (model_name, d_in, d_sae, hook_layer, hook_name, hook_head_index, context_size, architecture,
    dtype and further ones that it may look up). Decoder rows are of unit norm, as it expects.
    """

    def __init__(self, sae: SparseAutoencoder, model_name: str, context_size: int | None = None):
        super().__init__()
        if sae.config.token_norm or not sae.centred or len(sae.config.reads) > 1:
            raise ConfigError("SAEBench takes dictionaries of one hook point, without token_norm.")

        self.sae = sae.eval()
        hook = sae.config.hook
        self.cfg = SimpleNamespace(
            model_name=model_name, d_in=sae.d_in, d_sae=sae.d_sae, hook_layer=hook.layer,
            hook_name=hook_name(str(hook)), hook_head_index=None, context_size=context_size,
            architecture=getattr(sae.config, "architecture", ""), dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device), activation_fn_str="", activation_fn_kwargs={}, apply_b_dec_to_input=True,
            normalize_activations="none", prepend_bos=True, dataset_path="", dataset_trust_remote_code=False,
            seqpos_slice=(None,), training_tokens=-1, sae_lens_training_version=None, neuronpedia_id=None,
        )  # fmt: skip

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.sae.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        return self.sae.W_dec

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        return self.sae.b_enc

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        return self.sae.b_dec

    @property
    def device(self) -> torch.device:
        return self.sae.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sae.b_dec.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Dense activations [..., d_sae] of x [..., d_in]."""
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        code = self.sae.encode(rows)
        dense = torch.zeros(len(rows), self.sae.d_sae, dtype=self.dtype, device=rows.device)
        return dense.scatter_add(1, code.top_indices, code.top_acts).reshape(*x.shape[:-1], -1)

    def decode(self, acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction [..., d_in] of dense activations."""
        return acts.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> SaeBenchAdapter:
        """Moves or casts the wrapped dictionary and returns the adapter."""
        self.sae.to(*args, **kwargs)
        return self
