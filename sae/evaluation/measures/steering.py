"""What adding a latent's direction does to the next token, at the same disturbance for every latent and dictionary."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.kernels.sparse import rows_of
from sae.model.hookpoints import resolve
from sae.model.unembed import token_logits

LATENTS, CONTEXTS, TOKENS, OWN = 24, 24, 48, 10
TARGET_KL = 0.25  # nats
BISECTIONS = 12


class SteeringEffect(NamedTuple):
    """Means over directions: the gain of a direction's own tokens in log-odds, the largest change of any logit, and
    the strength alpha that was found.
    """

    log_odds_gain: float
    max_logit_change: float
    alpha: float


class Steering(Measure):
    """x + alpha d_i at the last position, with alpha such that the mean KL(clean || steered) is 0.25 nats (by
    bisection).

    For random live latents and, as the baseline, random directions. A direction steers well if, at that disturbance, it
    raises the tokens that its own logits name: the gain in log-odds of its ten most promoted tokens.
    """

    order = 30
    meanings: ClassVar[dict[str, str]] = {
        "steering.log_odds_gain": f"mean gain in log-odds of a latent's own tokens at KL {TARGET_KL} nats",
        "steering.random_log_odds_gain": "the same for random directions, the baseline",
        "steering.max_logit_change": "mean largest change of a logit at that KL",
        "steering.random_max_logit_change": "the same for random directions",
        "steering.alpha": "mean strength that this takes, in median norms of the activations",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that write one hook point"""
        return len(subject.sae.config.writes) == 1

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae, generator = subject.sae, subject.generator()
        live = torch.zeros(sae.d_sae, dtype=torch.bool)
        for batch in subject.batches(16_384):
            code = sae.encode(batch.x)
            live[code.top_indices[code.top_acts > 0].cpu()] = True

        ids = live.nonzero()[:, 0]
        picked = ids[torch.randperm(len(ids), generator=generator)[:LATENTS]]
        rows = F.normalize(rows_of(sae.W_dec, picked.to(subject.device)), dim=1)
        random = F.normalize(torch.randn(rows.shape, generator=generator), dim=1).to(rows.device)
        results = [self._steer(subject, directions, part) for part, directions in enumerate((rows, random))]
        figures = {
            f"{prefix}{n}": v
            for prefix, f in zip(("", "random_"), results, strict=True)
            for n, v in f._asdict().items()
        }

        return {"steering": {**figures, "target_kl": TARGET_KL, "latents": len(picked), "contexts": CONTEXTS}}

    def _steer(self, subject: Subject, rows: Tensor, part: int) -> SteeringEffect:
        lm, hook, contexts = subject.lm, subject.sae.config.writes[0], subject.held_out.contexts
        length = min(TOKENS, contexts.ctx_len)
        tokens = torch.from_numpy(contexts.ids[:CONTEXTS, :length].astype(np.int64)).to(lm.device)
        median = subject.held_out.statistics(hook).median_norm
        promoted = token_logits(lm, hook, rows, OWN).promoted.to(lm.device)
        clean = _last_logits(subject, tokens, None)
        totals = torch.zeros(3, dtype=torch.float64)

        for number, direction in enumerate(rows):
            low, high, alpha, steered = 0.0, 64.0, 1.0, clean
            for _ in range(BISECTIONS):
                alpha = (low + high) / 2 if low > 0 or high < 64 else 1.0
                steered = _last_logits(subject, tokens, alpha * median * direction)
                kl = F.kl_div(steered.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
                low, high = (alpha, high) if kl < TARGET_KL else (low, alpha)
                if abs(float(kl) / TARGET_KL - 1) < 0.03:
                    break
            gain = _log_odds(steered, promoted[number]) - _log_odds(clean, promoted[number])
            change = (steered - clean).abs().amax(1)
            totals += torch.tensor([float(gain.mean()), float(change.mean()), alpha], dtype=torch.float64)
            subject.progress.update(part * len(rows) + number + 1, 2 * len(rows))

        return SteeringEffect(*(totals / len(rows)).tolist())


def _log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p / (1 - p) of the tokens taken together, [contexts]."""
    p = logits.softmax(1)[:, tokens].sum(1).clamp(1e-9, 1 - 1e-6)
    return (p / (1 - p)).log()


def _last_logits(subject: Subject, tokens: Tensor, change: Tensor | None) -> Tensor:
    """Logits [contexts, vocabulary] after the last token, with `change` added to its activation."""
    lm = subject.lm

    def add(x: Tensor) -> Tensor:
        out = x.reshape(*tokens.shape, -1).clone()
        out[:, -1] += 0 if change is None else change.to(x.dtype)
        return out.reshape(x.shape)

    handle = resolve(lm, subject.sae.config.writes[0]).watch(add)
    try:
        return lm.model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    finally:
        handle.remove()
