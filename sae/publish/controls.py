"""Controls: dictionaries that learned nothing, for what a number is worth: random directions, and principal ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from feature_store.atomic import read_json
from feature_store.dictionary_files import Metrics
from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import ArchitectureConfig, SelectionInput
from sae.kernels.sparse import selection_for
from sae.publish.placement import placed
from sae.stream.activations import TYPICAL_NORM_MULTIPLE, Activations

ControlName = Literal["random", "principal"]
CONTROLS: tuple[ControlName, ...] = ("random", "principal")
MEANINGS: dict[ControlName, str] = {
    "random": "random unit directions, as many as the dictionary has latents",
    "principal": "the principal directions of the activations, each with both signs",
}
CHECK_FILE = "check.json"  # of an opened dictionary: fvu, l0 and loss recovered on the first tokens of its text
FEATURES = 256  # of a control that are labelled; its code competes over all of them
COVARIANCE_ROWS = 1 << 16
ENOUGH = 4096  # random directions, where only single ones are looked at


class Control(SparseAutoencoder[ArchitectureConfig]):
    """x_hat = sum_i a_i d_i + c with the k largest a_i = ReLU((x - c) d_i): unit rows d_i that were not trained.

    Where input and target differ (a transcoder), the decoder has random rows, and x_hat is not meant to be like the
    target.
    """

    selects = "k_per_token"

    def __init__(
        self,
        config: ArchitectureConfig,
        rows: Float[Tensor, "n d_in"],
        centre: Float[Tensor, " d_in"],
        *,
        w_dec: Float[Tensor, "n d_out"],
        k: int,
    ):
        settings = config.model_copy(update={"d_sae": len(rows), "token_norm": False})
        super().__init__(settings, rows.shape[1], w_dec.shape[1])
        self._k = min(k, len(rows))
        with torch.no_grad():
            self.W_enc.copy_(rows.T)
            self.W_dec.copy_(w_dec)
            if self.centred:
                self.b_dec.copy_(centre)
            else:
                self.b_enc.copy_(-(rows @ centre))
        self.eval()

    @property
    def k_of_token(self) -> int:
        """k, or all if there are fewer."""
        return self._k

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens k"]:
        """Indices of the k largest pre-activations."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self._k)


class ControlSample(NamedTuple):
    """A control and the features of it that are labelled."""

    control: Control
    features: Int[Tensor, " n"]


def control_of(
    sae: SparseAutoencoder[Any],
    name: ControlName,
    activations: Activations,
    k: int,
    *,
    seed: int,
    thinned: bool = False,
) -> ControlSample:
    """A control for a dictionary: on the same activations, with `k` latents per token.

    `thinned`: of a wide dictionary fewer random directions, of which the same share fires; single ones are as before.
    """
    config, n = sae.config, sae.d_sae
    x = _typical_rows(activations, config)
    generator = torch.Generator().manual_seed(seed)
    if thinned and name == "random":
        k, n = _thinned(k, n)
    rows = _unit_rows(n, sae.d_in, generator) if name == "random" else principal_directions(x).cpu()
    chosen = torch.randperm(len(rows), generator=generator)[:FEATURES].sort().values
    same = config.reads == config.writes
    w_dec = rows if same else _unit_rows(len(rows), sae.d_out, generator)
    control = Control(config, rows, x.mean(0).cpu(), w_dec=w_dec, k=k)

    return ControlSample(placed(control, sae.b_dec.device), chosen)


def _thinned(k: int, n: int) -> tuple[int, int]:
    """(fewer latents per token, fewer latents): about `ENOUGH` of n, of which the same share fires."""
    if n <= ENOUGH:
        return k, n
    fewer = -(-k * ENOUGH // n)
    return fewer, max(1, min(n, round(fewer * n / k)))


def _unit_rows(n: int, width: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(n, width, generator=generator), dim=1)


def principal_directions(x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "twice_d_in d_in"]:
    """Eigenvectors of the covariance of x, by falling eigenvalue, then the same with the other sign."""
    covariance = torch.cov(x.double().T)
    directions = torch.linalg.eigh(covariance).eigenvectors.T.flip(0).float()
    return torch.cat([directions, -directions])


def l0_of(sae: SparseAutoencoder[Any], folder: Path) -> int:
    """How many latents the dictionary in `folder` fires per token: measured when it was opened or evaluated, or expected."""
    measured = None
    if (folder / CHECK_FILE).exists():
        measured = read_json(folder / CHECK_FILE)["l0"]
    elif (folder / Metrics.file_name).exists():
        measured = Metrics.read(folder).l0
    return max(1, round(measured or sae.config.expected_l0))


def _typical_rows(activations: Activations, config: ArchitectureConfig) -> Float[Tensor, "rows d_in"]:
    """Rows of the stream's first segment without those whose norm outweighs all others."""
    x = activations.segment(0).rows(config.reads)[:COVARIANCE_ROWS].float()
    norms = x.norm(dim=1)
    return x[norms <= TYPICAL_NORM_MULTIPLE * norms.median()]


def sampled_code(
    acts: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"], number: Int[Tensor, " d_sae"]
) -> tuple[Float[Tensor, "tokens narrow"], Int[Tensor, "tokens narrow"]]:
    """The part of a code that is about chosen latents; `number` [d_sae] is their new number, -1 for all others."""
    numbers = number[indices]
    inside = (numbers >= 0) & (acts > 0)
    width = max(int(inside.sum(1).max()), 1)
    order = inside.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    inside = inside.gather(1, order)
    return acts.gather(1, order) * inside, numbers.gather(1, order).clamp_min(0)
