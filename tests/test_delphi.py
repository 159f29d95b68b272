"""Our detection beside delphi's: the same windows, explanation and answers of one scripted judge.

With every answer readable the two numbers are equal. They part where ours is stricter, and only there: delphi drops
unreadable answers and a last prompt that is not full, ours counts the first as wrong and asks the second. Runs where
delphi is installed; what it imports and does not use here (vllm, faiss, ...) is replaced by empty modules.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import zlib
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from fixtures import no_model

from sae.interpret.events import activation_levels
from sae.interpret.evidence import Evidence
from sae.interpret.judging.judge import Answer, read
from sae.interpret.scorers import JUDGED_SCORERS, ScoringCase

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is theirs
UNUSED = (
    "vllm", "vllm.distributed", "vllm.distributed.parallel_state", "vllm.inputs", "faiss", "sentence_transformers",
    "blobfile", "asyncer", "fire", "plotly", "plotly.express", "plotly.graph_objects", "plotly.subplots", "plotly.io", "kaleido", "tiktoken",
)  # fmt: skip


@pytest.fixture(scope="module")
def delphi():
    """delphi's modules (detection, clients, latents, result analysis)."""
    added = [name for name in UNUSED if name not in sys.modules]
    sys.modules |= {name: MagicMock() for name in added}
    names = ("scorers.classifier.detection", "clients.client", "latents", "log.result_analysis")
    try:
        yield [importlib.import_module(f"delphi.{name}") for name in names]
    except ImportError:
        if os.environ.get("SAEDEX_PEERS"):
            raise
        pytest.skip("delphi is not installed")
    finally:
        for name in added:
            del sys.modules[name]


def judge(description, texts, garbled):
    """Yes where the text holds the word, but for one text in seven; one text in twenty garbles the whole answer."""
    marks = [zlib.crc32(text.encode()) for text in texts]
    if garbled and any(mark % 20 == 0 for mark in marks):
        return "I cannot say."
    return [(description in text) != (mark % 7 == 0) for text, mark in zip(texts, marks, strict=True)]


def theirs(delphi, trials, garbled):
    """delphi's balanced accuracy on the prompts of `trials`, and how many answers it kept."""
    detection, client, latents, analysis = delphi

    class Scripted(client.Client):
        async def generate(self, prompt, **_):
            body = prompt[-1]["content"]
            description = body.split("Latent explanation:")[1].split("\n")[0].strip()
            texts = [part.split(": ", 1)[1] for part in body.split("\nExample ")[1:]]
            texts[-1] = texts[-1].rstrip("\n")
            answer = judge(description, texts, garbled)
            return client.Response(text=answer if isinstance(answer, str) else json.dumps([int(a) for a in answer]))

    scorer = detection.DetectionScorer(Scripted("scripted"), n_examples_shown=5)
    rows = []
    for trial in trials:
        data = json.loads(trial.prompt.user)
        examples = []
        for text, truth in zip(data["texts"], trial.truth, strict=True):
            kind = latents.ActivatingExample if truth else latents.NonActivatingExample
            examples.append(kind(torch.zeros(1), torch.ones(1), str_tokens=[text]))
        samples = [s for e in examples for s in detection.examples_to_samples([e])]
        rows += asyncio.run(scorer._generate(data["description"], samples))
    table = pd.DataFrame([{"activating": r.activating, "prediction": r.prediction} for r in rows])
    kept = table[table.prediction.notna()]
    positive, said = kept.activating.astype(bool), kept.prediction.astype(bool)
    facts = {
        "true_positives": (said & positive).sum(), "true_negatives": (~said & ~positive).sum(),
        "false_positives": (said & ~positive).sum(), "false_negatives": (~said & positive).sum(),
        "total_examples": len(kept), "total_positives": positive.sum(), "total_negatives": (~positive).sum(),
    }  # fmt: skip
    return analysis.compute_classification_metrics(facts)["accuracy"], len(kept)


def ours(trials, garbled):
    answers = []
    for trial in trials:
        data = json.loads(trial.prompt.user)
        said = judge(data["description"], data["texts"], garbled)
        answers.append(read(said) if isinstance(said, str) else Answer({"matches": said}))
    return JUDGED_SCORERS["detection"].score(trials, answers)[0]


def trials_of(planted, feature):
    evidence = Evidence(planted[1])
    word = evidence.normal(evidence.events.activating(feature)[0].ids[evidence.events.activating(feature)[0].peak])
    case = ScoringCase(evidence, feature, None, (), activation_levels(planted[1]), 0, no_model)
    return JUDGED_SCORERS["detection"].trials(case, word)


@pytest.mark.parametrize("feature", range(4))
def test_detection_parts_from_delphi_only_where_it_is_stricter(delphi, planted, feature):
    trials = trials_of(planted, feature)
    full = [t for t in trials if len(t.truth) == 5]
    n = sum(len(t.truth) for t in full)
    assert theirs(delphi, full, False) == (pytest.approx(ours(full, False).interval.value), n)
    short = [t for t in trials if len(t.truth) < 5]
    if short:  # its last answer is dropped there, and asked here
        assert theirs(delphi, trials, False)[1] == n < ours(trials, False).n_pos + ours(trials, False).n_neg
    value, kept = theirs(delphi, full, True)
    strict = ours(full, True)
    assert strict.n_failed == n - kept
    if strict.n_failed == 0:
        assert strict.interval.value == pytest.approx(value)
    elif strict.n_failed > 0.1 * n:
        assert strict.interval.value != strict.interval.value and value > 0  # void here, a number there
    else:
        assert strict.interval.value < value
