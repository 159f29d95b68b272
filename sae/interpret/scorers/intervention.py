"""What removing a feature, or turning it up, does to the model's next token in the feature's own contexts."""

from __future__ import annotations

from math import nan
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae.interpret.intervals import Interval, jackknife
from sae.interpret.live_dictionary import LiveDictionary
from sae.interpret.scorer import Figure, Scorer, ScoringCase
from sae.model.hookpoints import HookPoint, resolve
from sae.model.vocabulary import n_ids

MOST = 8


@final
class Intervention(Scorer):
    """KL after ablation, and shift of the promoted tokens' logits after clamping, at the peaks of test windows.

    With the latent's activation a, its decoder row d and its largest activation m in the corpus:

        ablation_kl     mean KL(p || p') in nats with x' = x - a d at every position of the window
        promoted_shift  mean change of the logits of the tokens that d promotes, over the mean change of all
                        logits, with x' = x + (m - a) d at the peak

    The windows are run on their own, so a is what the dictionary gives there, which can be less than in the whole
    context. The baseline adds the same amounts of another live feature's decoder row; both are 0 by chance.
    """

    name = "intervention"
    about_label = False
    by_default = False

    def score(self, case: ScoringCase) -> list[Figure]:
        """ablation_kl and promoted_shift; nothing without test windows, or if several hook points are written."""
        live_dictionary = case.live_dictionary()
        if len(live_dictionary.sae.config.writes) > 1:
            return []

        ids, peaks = _windows(case, live_dictionary)
        if len(ids) == 0:
            return []

        live = [f for f in case.evidence.to_label() if f != case.feature]
        other = live[int(case.generator().integers(len(live)))] if live else case.feature
        acts, factor = live_dictionary.acts(ids, case.feature)
        rows = torch.arange(len(ids), device=acts.device)
        clamp = torch.zeros_like(acts)
        most = max(e.act for e in case.evidence.events.activating(case.feature))
        clamp[rows, peaks] = most - acts[rows, peaks]
        direction, other_direction = (
            F.normalize(live_dictionary.sae.W_dec[f].to(acts.device), dim=0) for f in (case.feature, other)
        )
        size = live_dictionary.sae.W_dec[case.feature].norm().to(acts.device)
        changes = [
            (amount * factor)[..., None] * size * d for amount in (-acts, clamp) for d in (direction, other_direction)
        ]
        clean, *changed = _logits_at(live_dictionary, ids, peaks, changes)
        kl = [_kl(clean, other_logits) for other_logits in changed[:2]]
        promoted = torch.tensor(case.evidence.promoted[case.feature], device=clean.device)
        shift = [(d[:, promoted].mean(1) - d.mean(1)) for d in (logits - clean for logits in changed[2:])]

        return [
            Figure(
                metric, _mean(effects[0]), 0.0, len(ids), n_neg=0, baseline=float(effects[1].mean()) if live else nan
            )
            for metric, effects in (("ablation_kl", kl), ("promoted_shift", shift))
        ]


def _windows(case: ScoringCase, live_dictionary: LiveDictionary) -> tuple[np.ndarray, Tensor]:
    """(token ids [windows, length] up to the peak and filled up behind it, place of the peak) of test windows."""
    lm, config = live_dictionary.lm, live_dictionary.harvester.config
    bos = lm.tokenizer.bos_token_id if lm.prepend_bos else None
    events = case.part(case.evidence.events.activating(case.feature), True)
    before = [[] if bos is None or e.ids[0] == bos else [bos] for e in events]  # the first window of a context has it
    rows = [[*first, *e.ids[: e.peak + 1]] for first, e in zip(before, events, strict=True)]
    usable = [row for row in rows if len(row) > config.drop_positions]
    drawn = case.drawn(usable, MOST)
    length = max(map(len, drawn), default=0)
    ids = np.array([row + row[-1:] * (length - len(row)) for row in drawn], np.int64).reshape(len(drawn), length)

    return ids, torch.tensor([len(row) - 1 for row in drawn], device=lm.device)


@torch.no_grad()
def _logits_at(live_dictionary: LiveDictionary, ids: np.ndarray, peaks: Tensor, changes: list[Tensor]) -> list[Tensor]:
    """Logits [windows, vocabulary] at the peaks: clean, then with each change [windows, length, width] added."""
    tokens = torch.from_numpy(ids).to(live_dictionary.lm.device)
    nothing = torch.zeros_like(changes[0])
    every = tokens.repeat(len(changes) + 1, 1)
    added = torch.cat([nothing, *changes])
    hook: HookPoint = live_dictionary.sae.config.writes[0]

    def add(x: Tensor) -> Tensor:
        return (x.reshape(added.shape) + added.to(x.dtype)).reshape(x.shape)

    last = ids.shape[1] - int(peaks.min())
    handle = resolve(live_dictionary.lm, hook).watch(add)

    try:
        logits = live_dictionary.lm.model(input_ids=every, use_cache=False, logits_to_keep=last).logits
    finally:
        handle.remove()

    places = (peaks - (ids.shape[1] - last)).repeat(len(changes) + 1)
    at_peaks = logits[torch.arange(len(every), device=logits.device), places].float()

    return list(at_peaks[:, : n_ids(live_dictionary.lm.tokenizer)].chunk(len(changes) + 1))


def _kl(clean: Tensor, changed: Tensor) -> Tensor:
    return F.kl_div(changed.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="none").sum(1)


def _mean(values: Tensor) -> Interval:
    array = values.double().cpu().numpy()
    n = len(array)
    if n < 2:
        return Interval(float(array.mean()), nan, nan)
    return jackknife(float(array.mean()), (array.sum() - array) / (n - 1))
