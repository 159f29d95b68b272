"""Edits of a model's activations while it runs: features added, scaled, clamped, removed, and directions added.

h' = h + decode(z') - decode(z), where z is the code of h and z' the code after the edits. As decoding is linear in the
code, only the rows of the edited latents are needed: h' = h + sum_i (z'_i - z_i) d_i. What the dictionary does not
reconstruct of h stays as it is. With no edit the model's numbers stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError, DataError
from sae.kernels.sparse import rows_of
from sae.model.hookpoints import HookPoint, resolve_all
from sae.model.language_model import LanguageModel

Change = Literal["add", "scale", "clamp", "clamp_active", "ablate", "project_out"]
Positions = Literal["all", "last", "prompt", "generated"]
CHANGES: tuple[str, ...] = get_args(Change)
READS_CODE = ("scale", "clamp", "clamp_active", "ablate")
TINY = 1e-12


@dataclass(frozen=True)
class FeatureEdit:
    """What becomes of one latent's activation z.

    add: z + amount; scale: amount z; clamp: amount; clamp_active: amount where z > 0; ablate: 0; project_out: h loses all
    that it has along the latent's decoder row, whether the latent fires or not (amount is not used by the last two).
    """

    feature: int
    change: Change
    amount: float = 0.0


@dataclass(frozen=True, eq=False)
class DirectionEdit:
    """A direction [d_out] of the activation: `amount` times it is added, or what h has along it is taken out."""

    direction: Float[Tensor, " d_out"]
    change: Literal["add", "project_out"] = "add"
    amount: float = 1.0


Edit = FeatureEdit | DirectionEdit


@dataclass(frozen=True)
class EditPlan:
    """Edits, and where they apply.

    `positions`: all; the last of every pass (of the prompt, then every generated token); those of the prompt; or the
    generated ones. The first `skipped` positions of a text, which no dictionary is trained on, are left alone.
    `keep_norm` rescales h' to the norm of h. Without `with_error` h' is the reconstruction decode(z') alone.
    """

    edits: tuple[Edit, ...]
    positions: Positions = "all"
    skipped: int = 1
    keep_norm: bool = False
    with_error: bool = True

    def check(self, sae: SparseAutoencoder) -> None:
        """Raises `ConfigError` for a feature, a change or a shape that the dictionary does not have."""
        if len(sae.config.writes) != 1 or len(sae.config.reads) != 1:
            raise ConfigError(
                "this dictionary reads or writes several hook points, and edits want one of each. Leave removal out (0 features)."
            )
        if self.positions not in get_args(Positions):
            raise ConfigError(f"positions: {self.positions!r}; allowed are {', '.join(get_args(Positions))}.")
        for edit in self.edits:
            if edit.change not in CHANGES:
                raise ConfigError(f"edit {edit.change!r}; allowed are {', '.join(CHANGES)}.")
            if isinstance(edit, FeatureEdit) and not 0 <= edit.feature < sae.d_sae:
                raise ConfigError(f"feature {edit.feature}: the dictionary has features 0 to {sae.d_sae - 1}.")
            if isinstance(edit, DirectionEdit) and edit.direction.shape != (sae.d_out,):
                raise ConfigError(f"a direction of shape {tuple(edit.direction.shape)}; wanted is ({sae.d_out},).")


class _Editor:
    """The hooks of one plan. `n_seen` counts the tokens of earlier passes, which a cache holds."""

    def __init__(self, sae: SparseAutoencoder, plan: EditPlan):
        self.sae, self.plan = sae, plan
        self.features = [edit for edit in plan.edits if isinstance(edit, FeatureEdit)]
        self.needs_code = any(edit.change in READS_CODE for edit in self.features)
        self.n_seen: int | None = None  # None: every pass begins at position 0
        self._input: Tensor | None = None

    def read(self, x: Float[Tensor, "... d_in"]) -> None:
        """Keeps what a transcoder reads until it writes."""
        self._input = x

    def write(self, h: Float[Tensor, "... d_out"]) -> Float[Tensor, "... d_out"] | None:
        """The edited activations, or None where nothing is edited."""
        first = self.n_seen or 0
        length = h.shape[-2]
        if self.n_seen is not None:
            self.n_seen += length
        inside = self._inside(first, length)
        if not inside.any() or (self.plan.with_error and not self.plan.edits):
            return None

        rows = h[..., inside, :]
        inputs = rows if self._input is None else self._input[..., inside, :]
        flat = rows.reshape(-1, rows.shape[-1]).float()
        edited = self._edited(flat, inputs.reshape(-1, inputs.shape[-1]).float())
        if self.plan.keep_norm:
            edited = edited * (flat.norm(dim=1, keepdim=True) / edited.norm(dim=1, keepdim=True).clamp_min(TINY))
        out = h.clone()
        out[..., inside, :] = edited.reshape(rows.shape).to(h.dtype)
        return out

    def _inside(self, first: int, length: int) -> Tensor:
        """Which positions of this pass are edited."""
        inside = torch.arange(first, first + length) >= self.plan.skipped
        if self.plan.positions == "last":
            inside[:-1] = False
        if self.plan.positions == ("generated" if first == 0 else "prompt"):
            inside[:] = False
        return inside

    def _edited(self, h: Tensor, x: Tensor) -> Tensor:
        """h' [n, d_out] of activations h and what the dictionary reads, x [n, d_in]."""
        sae = self.sae
        ids = [edit.feature for edit in self.features if edit.change != "project_out"]
        latents = torch.tensor(sorted(set(ids)), device=h.device, dtype=torch.long)
        before = self._activations(x, latents)
        after = before.clone()
        place = {latent: number for number, latent in enumerate(latents.tolist())}
        for edit in self.features:
            if edit.change != "project_out":
                column = place[edit.feature]
                after[:, column] = _changed(after[:, column], edit)
        change = (after - before) @ rows_of(sae.W_dec, latents)
        if sae.config.token_norm:  # back from the token's normalised space
            deviation = sae.prepared(x).deviation
            assert deviation is not None
            change = change * deviation
        out = (h if self.plan.with_error else sae(x)) + change

        for edit in self.plan.edits:
            if isinstance(edit, DirectionEdit) and edit.change == "add":
                out = out + edit.amount * edit.direction.to(out)
            elif edit.change == "project_out":
                row = edit.direction if isinstance(edit, DirectionEdit) else sae.W_dec[edit.feature]
                unit = F.normalize(row.to(out), dim=0)
                out = out - (out @ unit)[:, None] * unit
        return out

    def _activations(self, x: Tensor, latents: Tensor) -> Tensor:
        """z [n, latents]; zeros if no edit depends on it, because only differences count then."""
        if not self.needs_code:
            return x.new_zeros(len(x), len(latents))
        code = self.sae.encode(x)
        same = code.top_indices[:, :, None] == latents
        return (code.top_acts[:, :, None] * same).sum(1)


def _changed(z: Tensor, edit: FeatureEdit) -> Tensor:
    """z' [n] of one latent."""
    if edit.change == "add":
        return z + edit.amount
    if edit.change == "scale":
        return z * edit.amount
    if edit.change == "clamp_active":
        return torch.where(z > 0, torch.full_like(z, edit.amount), z)
    return torch.full_like(z, edit.amount if edit.change == "clamp" else 0.0)


@contextmanager
def edited(lm: LanguageModel, sae: SparseAutoencoder, plan: EditPlan) -> Iterator[_Editor]:
    """Inside the block the model runs with the edits at the hook point that the dictionary writes."""
    plan.check(sae)
    editor = _Editor(sae, plan)
    hooks: tuple[HookPoint, ...] = tuple(dict.fromkeys((*sae.config.reads, *sae.config.writes)))
    places = resolve_all(lm, hooks)
    with ExitStack() as stack, torch.no_grad():
        if not sae.centred:
            stack.callback(places[sae.config.reads[0]].watch(editor.read).remove)
        stack.callback(places[sae.config.writes[0]].watch(editor.write).remove)
        yield editor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 takes the likeliest; `seed` makes draws the same again."""

    n_tokens: int = 40
    temperature: float = 0.0
    n_samples: int = 1
    seed: int = 0


def generate(
    lm: LanguageModel, sae: SparseAutoencoder, prompt: str, plan: EditPlan, *, sampling: Sampling | None = None
) -> list[str]:
    """What the model writes after a prompt under the edits, one text per sample; raises `DataError` if it is empty.

    Edits apply at every generated token too: the keys and values of earlier, edited tokens are kept.
    """
    sampling = sampling or Sampling()
    ids = lm.token_ids(prompt, getattr(lm.text_config, "max_position_embeddings", 1 << 30))
    if not ids:
        raise DataError("the prompt has no token; give a longer one.")

    tokens = torch.tensor([ids], device=lm.device)
    draws = {"temperature": sampling.temperature} if sampling.temperature > 0 else {}
    devices: Sequence[torch.device] = [lm.device] if lm.device.type == "cuda" else []
    with edited(lm, sae, plan) as editor, torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        editor.n_seen = 0
        out = lm.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=sampling.n_tokens,
            do_sample=sampling.temperature > 0,
            num_return_sequences=sampling.n_samples if sampling.temperature > 0 else 1,
            pad_token_id=lm.tokenizer.pad_token_id if lm.tokenizer.pad_token_id is not None else lm.tokenizer.eos_token_id,
            **draws,
        )  # fmt: skip
    return [lm.tokenizer.decode(row[len(ids) :], skip_special_tokens=True) for row in out]
