"""One dictionary under training: its updates, the figures that are logged, and what a resume needs."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.architectures import ArchitectureConfig, Batch, SparseAutoencoder, build
from sae.architectures.settings import BatchMean, TrainingPass, batch_of
from sae.errors import ConfigError, NumericError
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.metrics import FvuMeter, batch_sums, l0
from sae.foundation.tensor_files import Piece, TensorFiles
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activations import Activations, ActivationStatistics
from sae.training.code_decoding import Scales
from sae.training.exchange import Exchange, LatentShards, Replicas, average_buffers
from sae.training.fused_step import FusedStep, StepFigures
from sae.training.optimiser import TrainConfig

# The axis along which latents are counted; tensors that are not named here have none.
LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "tokens_since_fired": 0, "scales": 0}


class SaeTrainer:
    """One dictionary under training: module, optimiser, and the figures since the last log line.

    If the latents are spread over processes (`is_spread`), `sae` holds this process's `part` of them.
    """

    def __init__(
        self,
        config: ArchitectureConfig,
        statistics: dict[HookPoint, ActivationStatistics],
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str,
        gradient_norm: float | None = None,
        processes: Processes = ALONE,
        train: TrainConfig | None = None,
    ):
        train = train or TrainConfig()
        self.processes, self.is_spread = processes, processes.world_size > 1 and train.parallel == "latents"
        self.part = processes.share(config.d_sae) if self.is_spread else slice(0, config.d_sae)
        self.config, self.statistics = config, statistics[config.hook]

        reads, writes = [statistics[hook] for hook in config.reads], [statistics[hook] for hook in config.writes]
        self.scale_in, self.scale_out = _scales(reads, device), _scales(writes, device)
        self.variance = torch.tensor(sum(s.variance * s.scale**2 for s in writes), device=device)

        self.sae = self._create_sae(writes, seed, dtype).to(device)
        if gradient_norm is not None:
            self.sae.get_buffer("gradient_norm").fill_(gradient_norm)

        parameter_groups = [
            {"params": [parameter], "multiple": self.sae.lr_multiples.get(name, 1.0)}
            for name, parameter in self.sae.named_parameters()
        ]
        self.optimiser = torch.optim.Adam(parameter_groups, lr=0.0, fused=True)
        self.fused_step = self._create_fused_step(train)
        self.tokens_seen = 0
        self.reset_log()

    @classmethod
    def for_activations(
        cls,
        activations: Activations,
        config: ArchitectureConfig,
        *,
        seed: int,
        dtype: torch.dtype,
        processes: Processes = ALONE,
        train: TrainConfig | None = None,
    ) -> SaeTrainer:
        """A trainer for the rows of `activations`, with their statistics."""
        statistics = {hook: activations.statistics(hook) for hook in (*config.reads, *config.writes)}
        trainer = cls(
            config,
            statistics,
            seed=seed,
            dtype=dtype,
            device=activations.harvester.lm.device,
            gradient_norm=None if config.gradient is None else activations.mean_norm(config.gradient),
            processes=processes,
            train=train,
        )
        if type(trainer.sae).calibrate is not SparseAutoencoder.calibrate:
            rows = torch.cat([activations.sample(hook) for hook in config.reads], dim=1)
            trainer.sae.calibrate(rows.float() * trainer.scale_in)

        return trainer

    def _create_sae(self, writes: list[ActivationStatistics], seed: int, dtype: torch.dtype) -> SparseAutoencoder:
        config = self.config
        own_config = config.model_copy(update={"d_sae": self.part.stop - self.part.start})
        sae: SparseAutoencoder = build(own_config, len(self.scale_in), len(self.scale_out), dtype)
        centres = [torch.tensor(s.mean if config.centre == "mean" else s.centre) * s.scale for s in writes]
        generator = torch.Generator().manual_seed(seed if config.seed is None else config.seed)
        sae.initialise(generator, torch.cat(centres), self.part.start, config.d_sae)
        return sae

    def _create_fused_step(self, train: TrainConfig) -> FusedStep | None:
        """The hand-written step, if it fits; raises `ConfigError` if latents or moments need it and it does not."""
        world_size, exchange, moments = self.processes.world_size, self._exchange(train), train.moments
        if exchange is not None or (world_size == 1 and FusedStep.fits(self.sae)):
            return FusedStep(self.sae, self.optimiser, exchange, moments)
        if moments == "float32":
            return None

        if FusedStep.fits(self.sae):
            raise ConfigError(
                f"{self.config.name}: train.moments: {moments}: {world_size} replicas cannot share {self.config.d_sae} latents "
                "equally, so they train by autograd, which keeps moments in float32. Use train.parallel: dictionaries, or "
                "moments: float32."
            )

        raise ConfigError(
            f"{self.config.name}: train.moments: {moments} is for dictionaries that are trained without autograd, on a "
            "CPU or in bfloat16 on a GPU of compute capability 9.0, and this one is not. Use float32."
        )

    def _exchange(self, train: TrainConfig) -> Exchange | None:
        """What several processes exchange inside the hand-written step; None if there is one process, or no such step."""
        if self.processes.world_size == 1:
            return None

        fits = FusedStep.fits(self.sae)
        if not self.is_spread:
            can_share = self.config.d_sae % self.processes.world_size == 0
            return Replicas(self.processes, getattr(torch, train.exchange_dtype)) if fits and can_share else None

        if not fits or not LatentShards.fits(self.sae) or self.config.d_sae % self.processes.world_size:
            raise ConfigError(
                f"{self.config.name}: train.parallel: latents is for TopK dictionaries of one hook point, on a CPU or in "
                f"bfloat16 on a GPU of compute capability 9.0, with latents that {self.processes.world_size} processes "
                "can share equally and at least k each. Use replicas or dictionaries."
            )

        return LatentShards(self.processes)

    def reset_log(self) -> None:
        """Begins a new window of logged figures."""
        self.fvu = FvuMeter(self.sae.d_out, self.sae.b_dec.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.sae.b_dec.device)  # loss, AuxK, l0
        self.n_steps = 0

    def step(
        self, rows: dict[Channel, Float[Tensor, "tokens _width"]], lr: float, counts: list[int] | None = None
    ) -> None:
        """One update on rows [tokens, width] of every channel, in the language model's own units.

        `counts` are the numbers of rows of all replicas; None if there are no others.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["multiple"]

        batch = batch_of(self.config, rows, None if self.fused_step else torch.float32)
        counts = counts or [len(batch.x)]
        n_tokens = sum(counts)
        if not self.is_spread:
            self.sae.mean_over_batch = BatchMean(self.processes, len(batch.x) / n_tokens)

        figures = None
        if self.fused_step:
            figures = self.fused_step(
                batch,
                scales=Scales(self.scale_in, self.scale_out),
                variance=self.variance,
                lr=lr,
                tokens_seen=self.tokens_seen,
                counts=counts,
            )

        if figures is None:
            figures = self._autograd_step(batch, lr, n_tokens)

        self.fvu.add_sums(figures.figures[3], figures.figures[4], figures.target_sum, n_tokens)
        self.sums += figures.figures[:3]
        self.n_steps += 1
        self.tokens_seen += n_tokens

    def _autograd_step(self, raw: Batch, lr: float, n_tokens: int) -> StepFigures:
        """The definition of an update; `FusedStep` is tested against it."""
        if self.fused_step:
            self.fused_step.gather_weights()
        x = raw.x * self.scale_in
        gradient = None if raw.gradient is None else raw.gradient.float()
        batch = Batch(x, x if raw.y is raw.x else raw.y * self.scale_out, gradient)
        share = len(x) / n_tokens  # this process's share of the batch

        losses = self.sae.losses(batch, self.variance, self.tokens_seen)
        self.optimiser.zero_grad(set_to_none=True)
        (losses.total * share).backward()

        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                # W_enc is stored by latent; NCCL wants contiguous tensors.
                self.processes.all_reduce_sum(parameter.grad.T if name == "W_enc" else parameter.grad)

        if self.fused_step:
            self.fused_step.parameters.apply_gradients(lr=lr, n_tokens=n_tokens, n_own_tokens=len(x))
            self.optimiser.zero_grad(set_to_none=True)
        else:
            self.sae.project_decoder_gradient()
            self.optimiser.step()
            self.sae.normalise_decoder()
        self._observe(losses.training_pass, n_tokens, share)

        code = losses.training_pass.encoding
        error, square, target_sum = batch_sums(losses.training_pass.batch.y, losses.training_pass.x_hat)
        mean_l0 = l0(code.top_acts.detach())
        figures = [t.detach().double() * share for t in (losses.total, losses.aux, mean_l0)]
        summed = self.processes.all_reduce_sum(torch.stack([*figures, error, square]))

        return StepFigures(summed, self.processes.all_reduce_sum(target_sum))

    def _observe(self, training_pass: TrainingPass, n_tokens: int, share: float) -> None:
        """Counts firings, and brings the running figures of an architecture to the mean over processes."""
        self.sae.count_firings(training_pass.encoding, n_tokens)
        self.processes.all_reduce_min(self.sae.tokens_since_fired)
        self.sae.observe(training_pass)
        average_buffers(self.sae, self.processes, share)

    def log_line(self, lr: float) -> dict[str, float | int]:
        """Figures since the last line; raises `NumericError` if the loss is not finite."""
        loss, aux, mean_l0 = (self.sums / max(self.n_steps, 1)).tolist()
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise NumericError(
                f"{self.config.name}: the loss is {loss} after {self.tokens_seen:,} tokens. Lower train.lr; "
                "the last checkpoint is sound."
            )

        line = {"tokens_seen": self.tokens_seen, "loss": loss, "fvu": self.fvu.value(), "l0": mean_l0}
        line |= {"dead": self.n_dead(), "aux_loss": aux, "lr": lr}
        self.reset_log()

        return line

    def n_dead(self) -> int:
        """How many latents are dead; every process must call it."""
        n_own = self.sae.dead().sum()
        return int(self.processes.all_reduce_sum(n_own) if self.is_spread else n_own)

    def piece(self, name: str, value: Shaped[Tensor, " ..."]) -> Shaped[Tensor, " ..."] | Piece:
        """A parameter, a moment of it or a buffer; or the piece of it that this process has."""
        axis, part = LATENT_AXIS.get(name), self.part
        if self.fused_step and not self.is_spread:
            own_part = self.fused_step.exchange.own_latents(self.config.d_sae)
            part = own_part if name in ("W_enc", "W_dec", "scales") else slice(0, self.config.d_sae)
        if axis is None or part == slice(0, self.config.d_sae):
            return value
        length = part.stop - part.start
        own_part = value if value.shape[axis] == length else value.narrow(axis, part.start, length)
        return Piece(own_part, axis, part.start)

    def tensors(self) -> dict[str, Shaped[Tensor, " ..."] | Piece]:
        """Everything that a resume needs, by name."""
        state = {f"sae.{name}": self.piece(name, value) for name, value in self.sae.state_dict().items()}
        state["tokens_since_fired"] = self.piece("tokens_since_fired", self.sae.tokens_since_fired)
        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            for moment, value in self.optimiser.state[parameter].items():
                shaped_like = name if moment in ("exp_avg", "exp_avg_sq") else moment
                state[f"adam.{index}.{moment}"] = self.piece(shaped_like, value)
        state |= {"fvu.error": self.fvu.error, "fvu.square": self.fvu.square, "fvu.total": self.fvu.total}
        state |= {"sums": self.sums, "counts": torch.tensor([self.tokens_seen, self.n_steps, self.fvu.rows])}
        return {f"{self.config.name}/{name}": value for name, value in state.items()}

    def load_tensors(self, stored: TensorFiles) -> None:
        """The inverse of `tensors`, in place, whatever number of processes wrote them."""
        device, prefix = self.sums.device, f"{self.config.name}/"

        def read(name: str, shaped_like: str = "") -> Tensor:
            part = self.part if self.is_spread and shaped_like in LATENT_AXIS else None
            return stored.read(prefix + name, part).to(device)

        self.sae.load_state_dict({name: read(f"sae.{name}", name) for name in self.sae.state_dict()})
        self.sae.tokens_since_fired.copy_(read("tokens_since_fired", "tokens_since_fired"))

        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            if f"{prefix}adam.{index}.step" not in stored:
                continue
            state = {"step": read(f"adam.{index}.step")}
            for moment, shaped_like in (("exp_avg", name), ("exp_avg_sq", name), ("scales", "scales")):
                if f"{prefix}adam.{index}.{moment}" in stored:
                    value = read(f"adam.{index}.{moment}", shaped_like)
                    if shaped_like == name:  # in the parameter's own layout: W_enc is stored by latent
                        value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                    own_part = self.fused_step.adam.own_part(value, shaped_like) if self.fused_step else value
                    state[moment] = own_part.clone()
            self.optimiser.state[parameter] = state

        if self.fused_step:
            self.fused_step.reset()

        self.fvu.error, self.fvu.square, self.fvu.total = (read(f"fvu.{n}") for n in ("error", "square", "total"))
        self.sums = read("sums")
        self.tokens_seen, self.n_steps, self.fvu.rows = read("counts").tolist()


def _scales(statistics: list[ActivationStatistics], device: torch.device | str) -> Tensor:
    """One factor per column: each hook point gets a median norm of sqrt(its width)."""
    return torch.cat([torch.full((len(s.centre),), s.scale) for s in statistics]).to(device)
