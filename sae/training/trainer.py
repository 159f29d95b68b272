"""One dictionary under training: its updates, the figures that are logged, and what a resume needs."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from sae.architectures import ArchitectureConfig, Batch, SparseAutoencoder, build
from sae.errors import ConfigError, NumericError
from sae.foundation.distributed import ALONE, Group
from sae.foundation.metrics import FvuMeter, batch_sums, l0
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activations import Activations, Statistics, batch_of
from sae.training.checkpoint import Piece, Saved
from sae.training.fused_step import FusedStep, Made
from sae.training.optimiser import OptimiserConfig
from sae.training.replica_step import ReplicaStep
from sae.training.sharded_step import ShardedStep

LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "tokens_since_fired": 0, "scales": 0}


class SaeTrainer:
    """One dictionary under training: module, optimiser, and the figures since the last log line."""

    def __init__(
        self,
        config: ArchitectureConfig,
        statistics: dict[HookPoint, Statistics],
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str,
        gradient_norm: float | None = None,
        group: Group = ALONE,
        train: OptimiserConfig | None = None,
    ):
        train = train or OptimiserConfig()
        self.group, self.spread = group, group.size > 1 and train.parallel == "latents"
        self.config, self.statistics = config, statistics[config.hook]
        reads, writes = [statistics[hook] for hook in config.reads], [statistics[hook] for hook in config.writes]
        self.scale_in, self.scale_out = self._scales(reads, device), self._scales(writes, device)
        centres = [torch.tensor(s.mean if config.centre == "mean" else s.centre) * s.scale for s in writes]
        self.part = group.part(config.d_sae) if self.spread else slice(0, config.d_sae)
        own = config.model_copy(update={"d_sae": self.part.stop - self.part.start})
        self.sae: SparseAutoencoder = build(own, len(self.scale_in), len(self.scale_out), dtype)
        generator = torch.Generator().manual_seed(seed if config.seed is None else config.seed)
        self.sae.initialise(generator, torch.cat(centres), self.part.start, config.d_sae)
        self.sae.to(device)
        groups = [
            {"params": [parameter], "multiple": self.sae.lr_multiples.get(name, 1.0)}
            for name, parameter in self.sae.named_parameters()
        ]
        self.optimiser = torch.optim.Adam(groups, lr=0.0, fused=True)
        self.variance = torch.tensor(sum(s.variance * s.scale**2 for s in writes), device=device)
        if gradient_norm is not None:
            self.sae.get_buffer("gradient_norm").fill_(gradient_norm)
        self.fused = self._fused_step(train.moments)
        self.tokens_seen = 0
        self.reset_log()

    @classmethod
    def on(
        cls, activations: Activations, config: ArchitectureConfig, seed: int, dtype: torch.dtype,
        group: Group = ALONE, train: OptimiserConfig | None = None,
    ) -> SaeTrainer:  # fmt: skip
        """A trainer for the rows of `activations`, with their statistics."""
        statistics = {hook: activations.statistics(hook) for hook in (*config.reads, *config.writes)}
        norm = None if config.gradient is None else activations.mean_norm(config.gradient)
        return cls(config, statistics, seed, dtype, activations.harvester.lm.device, norm, group, train)

    def _fused_step(self, moments: str) -> FusedStep | None:
        """The step by hand that suits the dictionary and the processes; raises `ConfigError` where latents must be spread
        and cannot be."""
        if self.spread:
            if not ShardedStep.fits(self.sae) or self.config.d_sae % self.group.size:
                raise ConfigError(
                    f"{self.config.name}: train.parallel: latents is for TopK dictionaries of one hook point, on a CPU or in "
                    f"bfloat16 on a GPU of compute capability 9.0, with latents that {self.group.size} processes can share "
                    f"equally and at least k each. Use replicas or dictionaries."
                )
            return ShardedStep(self.sae, self.optimiser, self.group, moments)
        if self.group.size > 1 and ReplicaStep.fits(self.sae, self.group):
            return ReplicaStep(self.sae, self.optimiser, self.group, moments)
        if self.group.size == 1 and FusedStep.fits(self.sae):
            return FusedStep(self.sae, self.optimiser, self.group, moments)
        if moments != "float32" and FusedStep.fits(self.sae):
            raise ConfigError(
                f"{self.config.name}: train.moments: {moments}: {self.group.size} replicas train this dictionary by autograd, which "
                f"keeps moments in float32. Use train.parallel: dictionaries, or moments: float32."
            )
        if moments != "float32":
            raise ConfigError(
                f"{self.config.name}: train.moments: {moments} is for dictionaries that are trained without autograd, on a CPU "
                f"or in bfloat16 on a GPU of compute capability 9.0, and this one is not. Use float32."
            )
        return None

    @staticmethod
    def _scales(found: list[Statistics], device: torch.device | str) -> Tensor:
        """One factor a column: each hook point gets a median norm of sqrt(its width)."""
        return torch.cat([torch.full((len(s.centre),), s.scale) for s in found]).to(device)

    def reset_log(self) -> None:
        """Begins a new window of logged figures."""
        self.fvu = FvuMeter(self.sae.d_out, self.sae.b_dec.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.sae.b_dec.device)
        self.steps = 0

    def step(self, raw: dict[Channel, Tensor], lr: float, counts: list[int] | None = None) -> None:
        """One update on rows [tokens, width] of every channel, in the language model's own units.

        `counts` are the numbers of rows of all replicas (none: there are no others).
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["multiple"]
        batch = batch_of(self.config, raw, None if self.fused else torch.float32)
        counts = counts or [len(batch.x)]
        n = sum(counts)
        made = self.fused(batch, self.scale_in, self.variance, lr, self.tokens_seen, counts) if self.fused else None
        made = made or self._reference_step(batch, n)
        self.fvu.add_sums(made.figures[3], made.figures[4], made.total, n)
        self.sums += made.figures[:3]
        self.steps += 1
        self.tokens_seen += n

    def _reference_step(self, raw: Batch, n: int) -> Made:
        x = raw.x * self.scale_in
        gradient = None if raw.gradient is None else raw.gradient.float()
        batch = Batch(x, x if raw.y is raw.x else raw.y * self.scale_out, gradient)
        losses = self.sae.losses(batch, self.variance, self.tokens_seen)
        self.optimiser.zero_grad(set_to_none=True)
        share = len(x) / n
        (losses.total * share).backward()
        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                self.group.sum(parameter.grad.T if name == "W_enc" else parameter.grad)  # W_enc is stored by latent
        self.sae.project_decoder_gradient()
        with self.fused.wide_moments() if self.fused else nullcontext():
            self.optimiser.step()
        self.sae.normalise_decoder()
        made = losses.made
        self.sae.count_firings(made.encoding, n)
        self.group.least(self.sae.tokens_since_fired)
        self.sae.observe(made)
        for figure in self.sae.buffers():
            if figure.is_floating_point():
                figure.copy_(self.group.sum(figure * share))
        if self.fused:
            self.fused.reset()
            self.optimiser.zero_grad(set_to_none=True)
        mean_l0 = l0(made.encoding.top_acts.detach())
        error, square, total = batch_sums(made.batch.y, made.x_hat)
        figures = [t.detach().double() * share for t in (losses.total, losses.aux, mean_l0)]
        return Made(self.group.sum(torch.stack([*figures, error, square])), self.group.sum(total))

    def log_line(self, lr: float) -> dict[str, float | int]:
        """Figures since the last line; raises `NumericError` where the loss is not finite."""
        loss, aux, mean_l0 = (self.sums / max(self.steps, 1)).tolist()
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise NumericError(
                f"{self.config.name}: the loss is {loss} after {self.tokens_seen:,} tokens. Lower train.lr; "
                "the last checkpoint is sound."
            )
        line = {"tokens_seen": self.tokens_seen, "loss": loss, "fvu": self.fvu.value(), "l0": mean_l0}
        line |= {"dead": self.dead(), "aux_loss": aux, "lr": lr}
        self.reset_log()
        return line

    def dead(self) -> int:
        """How many latents are dead; every process must ask."""
        own = self.sae.dead().sum()
        return int(self.group.sum(own) if self.spread else own)

    def piece(self, name: str, value: Tensor) -> Tensor | Piece:
        """A parameter, a moment of it or a buffer, or what this process has of it."""
        axis, part = LATENT_AXIS.get(name), self.part
        if isinstance(self.fused, ReplicaStep):
            part = self.fused.part if name in ("W_enc", "W_dec", "scales") else slice(0, self.config.d_sae)
        if axis is None or part == slice(0, self.config.d_sae):
            return value
        length = part.stop - part.start
        return Piece(value if value.shape[axis] == length else value.narrow(axis, part.start, length), axis, part.start)

    def tensors(self) -> dict[str, Tensor | Piece]:
        """Everything that a resume needs, by name."""
        found = {f"sae.{name}": self.piece(name, value) for name, value in self.sae.state_dict().items()}
        found["tokens_since_fired"] = self.piece("tokens_since_fired", self.sae.tokens_since_fired)
        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            for moment, value in self.optimiser.state[parameter].items():
                of = name if moment in ("exp_avg", "exp_avg_sq") else moment
                found[f"adam.{index}.{moment}"] = self.piece(of, value)
        found |= {"fvu.error": self.fvu.error, "fvu.square": self.fvu.square, "fvu.total": self.fvu.total}
        found |= {"sums": self.sums, "counts": torch.tensor([self.tokens_seen, self.steps, self.fvu.rows])}
        return {f"{self.config.name}/{name}": value for name, value in found.items()}

    def load_tensors(self, saved: Saved) -> None:
        """The inverse of `tensors`, in place, whatever number of processes wrote them."""
        device, prefix = self.sums.device, f"{self.config.name}/"

        def read(name: str, of: str = "") -> Tensor:
            found = saved.read(prefix + name, self.part if self.spread and of in LATENT_AXIS else None)
            return found.to(device)

        state = self.sae.state_dict()
        self.sae.load_state_dict({name: read(f"sae.{name}", name) for name in state})
        self.sae.tokens_since_fired.copy_(read("tokens_since_fired", "tokens_since_fired"))
        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            if f"{prefix}adam.{index}.step" in saved:
                moments = {"step": read(f"adam.{index}.step")}
                for moment, of in (("exp_avg", name), ("exp_avg_sq", name), ("scales", "scales")):
                    if f"{prefix}adam.{index}.{moment}" in saved:
                        found = read(f"adam.{index}.{moment}", of)
                        if of == name:
                            found = torch.empty_like(parameter, dtype=found.dtype).copy_(found)  # W_enc by latent
                        moments[moment] = (self.fused.own(found, of) if self.fused else found).clone()
                self.optimiser.state[parameter] = moments
        if self.fused:
            self.fused.reset()
        self.fvu.error, self.fvu.square, self.fvu.total = (read(f"fvu.{n}") for n in ("error", "square", "total"))
        self.sums = read("sums")
        self.tokens_seen, self.steps, self.fvu.rows = read("counts").tolist()
