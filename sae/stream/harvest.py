"""From contexts to activations at several hook points, in one forward pass that stops at the deepest of them.

`Harvester.keep` drops the first `drop_positions` positions (1: position 0) and special tokens: no dictionary is trained
on them. Activations whose norm is too large are left out later (`Activations.within_norm`).

If a dictionary wants coefficients of the loss, the pass continues to the head, and back to the first hook point that
wants them; no gradient of a weight is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from pydantic import Field
from torch import Tensor

from sae.errors import NumericError
from sae.foundation.device import has_bfloat16_products
from sae.foundation.section import Count, Section
from sae.model.compiled_blocks import IGNORED, CompiledBlocks, next_token_loss
from sae.model.hookpoints import Channel, HookPoint, resolve_all, run_order
from sae.model.language_model import LanguageModel
from sae.model.relevance import RelevanceRules
from sae.stream.packing import attention_inputs, check_separate, positions_of

LOGITS = 1 << 25  # numbers; above this the memory for them costs a CPU more time than the model
LOGIT_BYTES = 24  # memory of one logit on a GPU, forward and backward pass together
GPU_TOKENS = 1 << 16  # tokens of a forward pass that keep a GPU busy


class HarvestConfig(Section):
    """How the model is run, and which positions are left out of training."""

    batch_contexts: Count | None = Field(
        default=None,
        ge=1,
        description="Contexts per forward pass (a fixed shape); none: 16 on a CPU, 65,536 tokens on a GPU.",
    )
    compile: Literal["auto"] | bool = Field(
        default="auto", description="Compile the model's blocks (a minute, once); auto: on a GPU."
    )
    drop_positions: Count = Field(
        default=1,
        ge=0,
        description="Positions to leave out at the start of a context (of every document, with text.packing: separate): the "
        "first token often has a huge norm.",
    )
    drop_special: bool = Field(default=True, description="Leave out special tokens (BOS, EOS, padding).")
    max_norm_multiple: float | None = Field(
        default=None,
        gt=1,
        description="Leave out positions whose norm exceeds this multiple of the median; none: keep all.",
    )
    cache: Literal["auto", "shared"] | bool = Field(
        default="auto",
        description="Whether harvested activations are kept on disk. true: until the run ends, for the index and a resumed "
        "run. false: they are harvested again. auto: true on a CPU, false on a GPU, which is faster than most disks. "
        "shared: until `sae cache` removes them, also for other runs with the same model, text, filters, shuffle, length "
        "and number of processes.",
    )
    cache_dtype: Literal["bfloat16", "int8"] = Field(
        default="bfloat16",
        description="How a cache stores numbers: in 2 bytes or, rounded, in 1 byte; training and the index then "
        "read the rounded numbers (held-out activations stay exact).",
    )

    def contexts_per_pass(self, ctx_len: int, device: torch.device) -> int:
        """`batch_contexts`, or what suits the device."""
        return self.batch_contexts or (max(1, GPU_TOKENS // ctx_len) if device.type == "cuda" else 16)

    def caches(self, device: torch.device) -> bool:
        """Whether activations are stored: as the config says, or as suits the device."""
        return device.type != "cuda" if self.cache == "auto" else bool(self.cache)


@dataclass(frozen=True)
class ActivationBatch:
    """Whole contexts: x[channel] is [contexts, ctx_len, width]; `keep` marks the positions to use."""

    x: dict[Channel, Float[Tensor, "contexts ctx_len _width"]]
    keep: Bool[Tensor, "contexts ctx_len"]


class Reached(Exception):
    """Stops a forward pass at the deepest hook point that is wanted."""


class Harvester:
    """Runs the model up to the deepest hook point, without its head, on batches of one fixed shape."""

    def __init__(self, lm: LanguageModel, channels: tuple[Channel, ...], config: HarvestConfig, packing: str):
        self.lm, self.config, self.packing = lm, config, packing
        self.channels = tuple(dict.fromkeys(channels))
        self.kinds = tuple(sorted({c.kind for c in self.channels} - {"activation"}))
        self.hooks = tuple(run_order(lm, tuple(dict.fromkeys(c.hook for c in self.channels))))
        self.places = resolve_all(lm, self.hooks)
        self.rules = RelevanceRules(lm) if "relp" in self.kinds else None
        compiled = config.compile is True or (config.compile == "auto" and lm.device.type == "cuda" and lm.home is None)
        self.compiled = CompiledBlocks(lm, self.places.values()) if compiled and self.rules is None else None
        self._after_pass: Callable[[int], None] | None = None
        self._special = torch.tensor(lm.special_ids, device=lm.device)
        self._longest_checked = 0

    @contextmanager
    def observed(self, after_pass: Callable[[int], None]) -> Iterator[None]:
        """Inside the block `after_pass` is called with the number of tokens of every forward pass."""
        self._after_pass = after_pass
        try:
            yield
        finally:
            self._after_pass = None

    def width(self, hook: HookPoint) -> int:
        """Numbers per activation at a hook point."""
        return self.places[hook].width

    @torch.no_grad()
    def harvest(
        self, ids: Integer[np.ndarray, "contexts ctx_len"], documents: Integer[np.ndarray, "contexts ctx_len"]
    ) -> ActivationBatch:
        """All channels of the contexts `ids` [contexts, ctx_len], in the model's own dtype."""
        outputs: dict[Channel, Tensor] = {}
        keeps = []
        if self.packing == "separate" and ids.shape[1] > self._longest_checked:
            check_separate(self.lm, ids.shape[1])
            self._longest_checked = ids.shape[1]
        step = self.config.contexts_per_pass(ids.shape[1], self.lm.device)
        finite = torch.ones((), dtype=torch.bool, device=self.lm.device)

        for start in range(0, len(ids), step):
            part, part_documents = _padded(ids[start : start + step], documents[start : start + step], step)
            tokens = self._sent(part)
            with self.compiled.active() if self.compiled else nullcontext():
                activations = self._channels(tokens, part_documents)
            n = min(step, len(ids) - start)
            for channel, x in activations.items():
                if channel not in outputs:
                    outputs[channel] = x.new_empty((len(ids), *x.shape[1:]))
                outputs[channel][start : start + n] = x[:n]
                finite &= torch.isfinite(x).all()  # read once after all passes, so that no pass is waited for
            keeps.append(self.keep(tokens[:n], part_documents[:n]))
            if self._after_pass is not None:
                self._after_pass(tokens[:n].numel())

        if not finite:
            names = ", ".join(str(c) for c, x in outputs.items() if not torch.isfinite(x).all())
            raise NumericError(f"harvest: {names} not finite: {self.lm.why_not_finite()}")

        return ActivationBatch(outputs, torch.cat(keeps))

    def _sent(self, ids: np.ndarray) -> Tensor:
        """Token ids on the model's device; a GPU is not waited for."""
        tokens = torch.from_numpy(ids.astype(np.int64))
        if self.lm.device.type == "cuda":
            tokens = tokens.pin_memory()
        return tokens.to(self.lm.device, non_blocking=True)

    def keep(
        self, tokens: Int[Tensor, "contexts ctx_len"], documents: Integer[np.ndarray, "contexts ctx_len"]
    ) -> Bool[Tensor, "contexts ctx_len"]:
        """Which tokens are trained on: not the first `drop_positions` positions (by default 0 alone), not special ones.

        Positions are the model's own: with `separate` packing they begin anew with every document.
        """
        positions = positions_of(documents, self.packing)
        mask = positions >= self.config.drop_positions
        if self.kinds:  # where no token follows, no loss depends on it
            mask[:, -1] = False
            mask[:, :-1] &= positions[:, 1:] > 0
        is_used = torch.from_numpy(mask).to(tokens.device)
        if self.config.drop_special and len(self._special):
            is_used &= ~torch.isin(tokens, self._special)
        return is_used

    def _channels(self, tokens: Tensor, documents: np.ndarray) -> dict[Channel, Tensor]:
        tensors: dict[Channel, Tensor] = {}
        for kind in self.kinds:
            parts = [self._backward(tokens[part], documents[part], kind) for part in self._parts(tokens)]
            tensors |= {channel: torch.cat([part[channel] for part in parts]) for channel in parts[0]}
        if not self.kinds:
            tensors = {Channel(hook): x for hook, x in self._forward(tokens, documents).items()}
        return {channel: tensors[channel] for channel in self.channels}

    def _parts(self, tokens: Tensor) -> list[slice]:
        """Nearly equal slices of a batch, each with few enough logits to hold several copies of them."""
        per_context = tokens.shape[1] * self.lm.model.get_output_embeddings().weight.shape[0]
        gpu = self.lm.device.type == "cuda"
        numbers = torch.cuda.get_device_properties(self.lm.device).total_memory // 2 // LOGIT_BYTES if gpu else LOGITS
        most = max(1, numbers // per_context)
        # Equal slices: each further shape would be compiled again, and torch gives up after eight.
        step = -(-len(tokens) // -(-len(tokens) // most))
        return [slice(start, start + step) for start in range(0, len(tokens), step)]

    def _forward(self, tokens: Tensor, documents: np.ndarray) -> dict[HookPoint, Tensor]:
        activations: dict[HookPoint, Tensor] = {}
        last = self.hooks[-1]
        batch, length = tokens.shape

        def take(hook: HookPoint, x: Tensor) -> None:
            x = x.reshape(batch, length, -1).detach()
            activations[hook] = x if hook == last else x.clone()  # some models add to it in place later
            if hook == last:
                raise Reached

        with ExitStack() as stack:
            for hook in self.hooks:
                stack.callback(self.places[hook].watch(lambda x, hook=hook: take(hook, x)).remove)
            with suppress(Reached):
                self.lm.body(input_ids=tokens, use_cache=False, **attention_inputs(documents, self.packing, self.lm))

        return activations

    def _targets(self, tokens: Tensor, documents: np.ndarray) -> Tensor:
        """The tokens as targets of the loss: not the first ones of documents that do not see the one before."""
        if self.packing == "joined":
            return tokens
        begins = torch.from_numpy(positions_of(documents, self.packing) == 0).to(tokens.device)
        return tokens.masked_fill(begins, IGNORED)

    def _backward(self, tokens: Tensor, documents: np.ndarray, kind: str) -> dict[Channel, Tensor]:
        """Activations of every hook point, and coefficients of the summed next-token cross-entropy for those that want
        them.
        """
        tensors: dict[Channel, Tensor] = {}
        live: dict[HookPoint, Tensor] = {}
        hooks_with_coefficients = {c.hook for c in self.channels if c.kind == kind}

        def take(hook: HookPoint, x: Tensor) -> Tensor:
            if hook in hooks_with_coefficients:
                x = x if x.requires_grad else x.detach().requires_grad_()  # the backward pass ends at the first one
                live[hook] = x
            tensors[Channel(hook)] = (
                x.detach().reshape(*tokens.shape, -1).clone()
            )  # some models add to it in place later
            return x

        with ExitStack() as stack:
            for hook in self.hooks:
                stack.callback(self.places[hook].watch(lambda x, hook=hook: take(hook, x)).remove)
            if kind == "relp" and self.rules is not None:
                stack.enter_context(self.rules.active())
            stack.enter_context(torch.enable_grad())
            extra = attention_inputs(documents, self.packing, self.lm)
            logits = self.lm.model(input_ids=tokens, use_cache=False, **extra).logits
            targets = self._targets(tokens, documents)
            loss = (self.compiled.loss if self.compiled else next_token_loss)(logits, targets)
            coefficients = torch.autograd.grad(loss, list(live.values()))

        for hook, coefficient in zip(live, coefficients, strict=True):
            tensors[Channel(hook, kind)] = coefficient.reshape(*tokens.shape, -1)  # pyright: ignore[reportArgumentType]

        return tensors


def _padded(ids: np.ndarray, documents: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with their last row repeated up to `rows`, so that every forward pass has one shape."""
    n_padding_rows = rows - len(ids)
    if n_padding_rows <= 0:
        return np.asarray(ids), np.asarray(documents)
    ids, documents = (np.concatenate([a, np.repeat(a[-1:], n_padding_rows, axis=0)]) for a in (ids, documents))
    return ids, documents


def choose_dtype(device: torch.device, setting: str) -> torch.dtype:
    """The dtype that the config names; for auto bfloat16 where the GPU or CPU has instructions for it, else float32."""
    if setting != "auto":
        return getattr(torch, setting)
    return torch.bfloat16 if device.type == "cuda" or has_bfloat16_products() else torch.float32
