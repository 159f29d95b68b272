"""The weights of a dictionary with Adam's moments, as the hand-written update reads and changes them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.kernels import moments
from sae.kernels.step_types import AdamStep, ParameterState, StepKernels, WeightTable
from sae.training.exchange import Exchange


class AdamState:
    """Weights, moments and rounded copies of one dictionary; torch's optimiser stays the owner of the moments.

    `rounded` are both weight tables [m, d] as the encoder's product reads them, `tables` as all else reads them: on a
    CPU only the selection reads rounded weights, on a GPU every product does.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        optimiser: torch.optim.Adam,
        kernels: StepKernels,
        exchange: Exchange,
        *,
        moments_in: str,
    ):
        self.sae, self.optimiser, self.kernels = sae, optimiser, kernels
        self.exchange, self.moments_in = exchange, moments_in
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in sae.named_parameters()}
        self.reset()

    def reset(self) -> None:
        """Forgets everything derived from weights and moments."""
        self.rounded: list[Tensor] = []
        self.tables: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._n_updates = 0
        self._numbers: Tensor | None = None

    def count_update(self) -> None:
        """Counts one finished update."""
        self._n_updates += 1
        torch._foreach_add_(self._steps, 1)  # pyright: ignore[reportPrivateImportUsage]

    def own_part(self, tensor: Shaped[Tensor, " ..."], name: str) -> Shaped[Tensor, " ..."]:
        """The part of the parameter `name`, or of a moment of it, that this process updates."""
        if tensor.ndim == 1 or name == "W_skip":
            return tensor
        part = self.exchange.own_latents(self.sae.d_sae)
        return tensor[:, part] if name == "W_enc" else tensor[part]

    def of(self, parameter: Float[Tensor, " ..."]) -> ParameterState:
        """A parameter with its moments, which are created as Adam would."""
        state, weights = self.optimiser.state[parameter], self.own_part(parameter.data, self._names[parameter])
        if not state:
            is_table = parameter is self.sae.W_enc or parameter is self.sae.W_dec
            stored_in = self.moments_in if is_table else "float32"
            first_dtype, second_dtype = moments.DTYPES[stored_in]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(weights, dtype=first_dtype)
            state["exp_avg_sq"] = torch.zeros_like(weights, dtype=second_dtype)
            if stored_in == "int8":
                state["scales"] = self.own_part(parameter.data.new_zeros(self.sae.d_sae, 2), "scales").clone()

        return ParameterState(weights, state["exp_avg"], state["exp_avg_sq"])

    def encoder(self) -> WeightTable:
        """W_enc by latent [m, d]: its transpose is the module's [d, m]."""
        weights, first, second = (t.T for t in self.of(self.sae.W_enc))
        return self._weight_table(self.sae.W_enc, weights, first, second, rounded=self.rounded[0])

    def decoder(self) -> WeightTable:
        """W_dec [m, d]."""
        return self._weight_table(self.sae.W_dec, *self.of(self.sae.W_dec), rounded=self.rounded[1])

    def _weight_table(
        self, parameter: Tensor, weights: Tensor, first: Tensor, second: Tensor, *, rounded: Tensor
    ) -> WeightTable:
        no_scales = first.new_empty(0, 2, dtype=torch.float32)
        scales = self.optimiser.state[parameter].get("scales", no_scales)
        return WeightTable(weights, first, second, scales, rounded=rounded[self.exchange.own_latents(self.sae.d_sae)])

    def step(self, lr: float, n_tokens: int, n_own_tokens: int) -> AdamStep:
        """Adam's constants of the next update. The count of updates is kept beside the moments, as torch keeps it."""
        if self._numbers is None:
            self._create_state()
        assert self._numbers is not None
        group = self.optimiser.param_groups[0]
        (beta1, beta2), t = group["betas"], self._n_updates + 1
        constants = (lr / (1 - beta1**t), (1 - beta2**t) ** -0.5, n_tokens, n_own_tokens, t)
        for place, number in enumerate(constants):
            self._numbers[place].fill_(number)
        return AdamStep(self._numbers, beta1, beta2, group["eps"])

    def _create_state(self) -> None:
        """Creates the moments, the rounded copies of the weights and the tensor of Adam's constants."""
        sae = self.sae
        for parameter in sae.parameters():
            self.of(parameter)

        self._steps = [self.optimiser.state[parameter]["step"] for parameter in sae.parameters()]
        self._n_updates = int(self._steps[0])

        w_enc, w_dec = sae.W_enc.data.T, sae.W_dec.data
        self.rounded = [
            self.kernels.rounded(w_enc, sae.selection_dtype), self.kernels.rounded(w_dec, torch.float32)
        ]  # fmt: skip
        self.tables = [w_enc, w_dec] if self.sae.b_dec.device.type == "cpu" else self.rounded
        self._numbers = torch.empty(5, dtype=torch.float32, device=self.sae.b_dec.device)
