"""A dictionary together with the language model that it was trained on, for scorers that run both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.architectures.settings import batch_of
from sae.model.language_model import LanguageModel
from sae.stream.harvest import Harvester


@dataclass(frozen=True)
class LiveDictionary:
    """A published dictionary and what harvests its activations."""

    sae: SparseAutoencoder
    harvester: Harvester

    @property
    def lm(self) -> LanguageModel:
        return self.harvester.lm

    @torch.no_grad()
    def acts(
        self, ids: Integer[np.ndarray, "contexts length"], latent: int
    ) -> tuple[Float[Tensor, "contexts length"], Float[Tensor, "contexts length"]]:
        """(activations of one latent, the factors of decoding), [contexts, length] each, on texts `ids`.

        Activations are 0 at positions that are never trained on; the factor is 1 without `token_norm`.
        """
        harvested = self.harvester.harvest(ids, np.zeros_like(ids))
        rows = {channel: x.flatten(0, 1).float() for channel, x in harvested.x.items()}
        code = self.sae.encode(batch_of(self.sae.config, rows).x)
        acts = (code.top_acts * (code.top_indices == latent)).sum(1).reshape(ids.shape)
        factor = torch.ones_like(acts) if code.deviation is None else code.deviation.reshape(ids.shape)
        return acts * harvested.keep, factor
