"""Which tokens a latent's decoder direction promotes: through the rest of its sub-layer, final norm and unembedding."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.errors import ConfigError
from sae.model.blocks import probe_ids
from sae.model.hookpoints import HookPoint, Place, find_places
from sae.model.language_model import LanguageModel
from sae.model.largest import keep_largest

COLUMNS = 1 << 16  # decoder rows that are compared with others at a time
ROWS = 256
TRIAL_ROWS = 8
OUTER = {"attn_z": "attn_out", "mlp_hidden": "mlp_out"}
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative difference of the same logits, computed in two ways


class Logits(NamedTuple):
    """Tokens and logit differences from the mean token, [d_sae, n] each."""

    promoted: Int[Tensor, "d_sae n"]
    promoted_logits: Float[Tensor, "d_sae n"]
    suppressed: Int[Tensor, "d_sae n"]
    suppressed_logits: Float[Tensor, "d_sae n"]


class Promoters(NamedTuple):
    """Latents that raise each token most, and by how many standard deviations of the latent's logits, [tokens, n] each.

    The tokens are those that the model can predict.
    """

    tokens: Int[Tensor, " tokens"]
    latents: Int[Tensor, "tokens n"]
    heights: Float[Tensor, "tokens n"]


class _Pass(NamedTuple):
    """What a pass of the model had at a place, and its logits; a row for every context of one token."""

    out: Tensor
    logits: Tensor


def _passed(lm: LanguageModel, rows: Float[Tensor, "rows width"], into: Place, out: Place) -> _Pass:
    """The model's own pass if `rows`, one in each context of one token, replace what it has at `into`."""
    outputs: list[Tensor] = []
    ids = probe_ids(lm.model, lm.special_ids, (len(rows), 1))
    with ExitStack() as stack:
        stack.callback(into.watch(lambda x: rows.reshape(x.shape).to(x.dtype)).remove)
        stack.callback(out.watch(outputs.append).remove)
        logits = lm.model(input_ids=ids, use_cache=False).logits
    return _Pass(outputs[-1].reshape(len(rows), -1), logits.reshape(len(rows), -1))


def _without_constant(lm: LanguageModel, rows: Tensor, into: Place, out: Place) -> Tensor:
    """What `rows` at `into` give at `out`, less what zeros give."""
    both = _passed(lm, torch.cat([rows, torch.zeros_like(rows[:1])]), into, out).out
    return both[:-1] - both[-1:]


def _norm_before_head(lm: LanguageModel) -> nn.Module | None:
    """The last module like a norm, as wide as the stream, that a forward pass runs."""
    last: list[nn.Module] = []
    handles = []

    for module in lm.body.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and len(weight) == lm.d_model:
            handles.append(module.register_forward_hook(lambda m, _a, _o: last.append(m)))

    try:
        lm.body(input_ids=lm.probe_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()

    return last[-1] if last else None


class Unembedding:
    """From directions of the residual stream to the logits that they add, before a scale or a soft cap of all logits.

    Most models have a norm and a matrix after the last block; there it is U norm(d), biases left out. Others have a
    projection between them, a head of several layers, or no norm. These are run: logits with d as the stream after the
    last block, less those with 0. Which kind a model is shows in a trial of both ways. Raises `ConfigError` if the model
    has no head, or logits that do not follow from the stream by it.
    """

    def __init__(self, lm: LanguageModel):
        head = lm.model.get_output_embeddings()
        if head is None:
            raise ConfigError(
                f"{type(lm.model).__name__}: no unembedding that saedex can find; promoted tokens need one."
            )
        self.lm, self.ids, self.dtype = lm, lm.scored_ids, head.weight.dtype
        weight = head.weight[: len(self.ids)] if self._is_dense() else head.weight[self.ids]
        self.weight = weight.to(lm.device)
        self.stream = Place(lm.blocks.last, "last block", "output", lm.d_model, home=lm.home)
        self.head = Place(head, "head", "output", len(head.weight), home=lm.home)
        trial = torch.randn(TRIAL_ROWS, lm.d_model, generator=torch.Generator().manual_seed(0)).to(
            lm.device, self.dtype
        )
        self._check_head(trial)
        norm = _norm_before_head(lm)
        self.norm = norm if norm is not None and self._is_plain(norm, trial) else None

    def __call__(self, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows tokens"]:
        """Logits of the tokens `ids`."""
        return self._run(directions) if self.norm is None else self._product(self.norm, directions)

    def _is_dense(self) -> bool:
        return len(self.ids) == int(self.ids[-1]) + 1

    def _product(self, norm: nn.Module, directions: Tensor) -> Tensor:
        normed, bias = norm(directions[None])[0], getattr(norm, "bias", None)
        normed = normed - bias if isinstance(bias, Tensor) else normed
        return nn.functional.linear(normed.to(self.weight.device), self.weight)

    def _run(self, directions: Tensor) -> Tensor:
        return _without_constant(self.lm, directions, self.stream, self.head)[:, self.ids]

    def _is_plain(self, norm: nn.Module, trial: Tensor) -> bool:
        if self.weight.shape[1] != self.lm.d_model:
            return False
        expected = self._run(trial)
        return bool((self._product(norm, trial) - expected).norm() <= ROUNDING[self.dtype] * expected.norm())

    def _check_head(self, trial: Tensor) -> None:
        """Raises `ConfigError` unless logits follow from the last block's output, whatever the tokens, and keep order."""
        twice = _passed(self.lm, trial.repeat(2, 1), self.stream, self.head)
        first, second = twice.out.float().chunk(2)
        in_order = twice.logits.gather(1, twice.out.argsort(dim=1)).float()
        if (first - second).norm() > ROUNDING[self.dtype] * first.norm():
            reason = "its logits depend on more than what its last block writes"
        elif (in_order.diff(dim=1) < -ROUNDING[self.dtype] * in_order.std()).any():
            reason = "it changes the order of its logits after the unembedding"
        else:
            return
        raise ConfigError(
            f"{type(self.lm.model).__name__}: {reason}, so saedex cannot tell which tokens a direction promotes. Set "
            "index.build: false to train without a feature store."
        )


def residual_directions(
    lm: LanguageModel, hook: HookPoint, rows: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows d_model"]:
    """What decoder rows add to the residual stream: themselves, or what becomes of them in the rest of their sub-layer."""
    if hook.site not in OUTER:
        return rows
    places = find_places(lm, hook.layer)
    inner, outer = places[hook.site], places[OUTER[hook.site]]
    if inner.module is outer.module:
        return inner.module(rows) - inner.module(torch.zeros_like(rows[:1]))
    return _without_constant(lm, rows, inner, outer)  # a norm follows the last linear map


class Promotion:
    """Collects, block of latents by block, the latents that promote each token most.

    Logits compare within a latent rather than across, so each is taken in standard deviations of its latent's logits:
    height = (logit - mean) / std.
    """

    def __init__(self, n: int):
        self.n, self._seen = n, 0
        self._heights = self._latents = torch.empty(0)
        self._ids = torch.empty(0, dtype=torch.int64)

    def add(self, ids: Int[Tensor, " tokens"], logits: Float[Tensor, "rows tokens"]) -> None:
        """Takes the next latents' logits, less their means."""
        if logits.device.type == "cpu":
            self._add_on_cpu(ids, logits)
            return
        heights = (logits / logits.std(dim=1, keepdim=True).clamp(min=1e-12)).T
        latents = torch.arange(self._seen, self._seen + len(logits), device=logits.device).expand(heights.shape)
        if self._seen:
            heights = torch.cat([self._heights, heights], dim=1)
            latents = torch.cat([self._latents, latents], dim=1)
        top = heights.topk(min(self.n, heights.shape[1]), dim=1)
        self._ids, self._heights, self._latents = ids, top.values, latents.gather(1, top.indices)
        self._seen += len(logits)

    def _add_on_cpu(self, ids: Int[Tensor, " tokens"], logits: Float[Tensor, "rows tokens"]) -> None:
        """The same by one pass over the block: nearly all logits are no newcomers."""
        if not self._seen:
            self._ids = ids
            self._heights = torch.full((len(ids), self.n), -torch.inf)
            self._latents = torch.zeros(len(ids), self.n, dtype=torch.int64)
        scales = logits.std(dim=1).clamp(min=1e-12)
        keep_largest(logits.numpy(), scales.numpy(), self._seen, self._heights.numpy(), self._latents.numpy())
        self._seen += len(logits)

    def found(self) -> Promoters:
        """The strongest of all latents that were added, on the CPU."""
        if self._seen < self.n:  # of a dictionary with fewer latents than are kept
            return Promoters(
                self._ids.cpu(), self._latents[:, : self._seen].cpu().long(), self._heights[:, : self._seen].cpu()
            )
        return Promoters(self._ids.cpu(), self._latents.cpu().long(), self._heights.cpu())


@torch.no_grad()
def token_logits(
    lm: LanguageModel,
    hook: HookPoint,
    w_dec: Float[Tensor, "d_sae width"],
    n: int,
    *,
    promotion: Promotion | None = None,
) -> Logits:
    """The `n` tokens each latent promotes and suppresses most; `promotion` collects the same by token.

    Logits of the unit decoder row d (`Unembedding`) minus their mean over the vocabulary: the norm's own scaling stands
    in for the residual stream's, so values compare within a latent rather than across.
    """
    unembed = Unembedding(lm)
    ids = unembed.ids.to(lm.device)
    parts: list[list[Tensor]] = [[], [], [], []]

    for rows in w_dec.split(ROWS):
        logits = unembed(residual_directions(lm, hook, rows.to(lm.device, unembed.dtype))).float()
        logits -= logits.mean(dim=1, keepdim=True)
        if promotion is not None:
            promotion.add(ids, logits)
        top, bottom = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
        for part, value in zip(parts, (ids[top.indices], top.values, ids[bottom.indices], -bottom.values), strict=True):
            part.append(value.cpu())

    return Logits(*(torch.cat(part) for part in parts))


@torch.no_grad()
def nearest(
    w_dec: Float[Tensor, "d_sae width"], n: int, device: torch.device | None = None
) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """(latents, cosines), [d_sae, n] each: the nearest other decoder rows, blockwise, on `device` (None: where they are)."""
    rows, device = torch.nn.functional.normalize(w_dec, dim=1), device or w_dec.device
    indices, cosines = [], []
    for start in range(0, len(rows), 1024):
        block = rows[start : start + 1024].to(device)
        cosine = torch.cat([block @ part.to(device).T for part in rows.split(COLUMNS)], dim=1)
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        top = cosine.topk(min(n, len(rows) - 1), dim=1)
        indices.append(top.indices)
        cosines.append(top.values)
    return torch.cat(indices).cpu(), torch.cat(cosines).cpu()
