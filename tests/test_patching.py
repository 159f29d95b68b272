"""Patching: what is put in is what comes out, estimates obey their axioms, and the command writes a finding."""

from __future__ import annotations

import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.patching.components import Patch, Patcher, component_effects, read_pair
from sae.apply.patching.latents import latent_changes, latent_effects, single_effects, whole_effects
from sae.apply.patching.prompts import PairIds, PromptPair, ids_of, indirect_objects, read_pairs
from sae.apply.patching.report import correlation
from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.errors import DataError
from sae.model import language_model
from sae.model.hookpoints import HookPoint
from sae.model.language_model import FolderModel

HOOK = HookPoint("resid_post", 0)


@pytest.fixture(scope="module")
def lm(tiny_model):
    loaded = language_model.load(FolderModel(source="folder", path=tiny_model), torch.device("cpu"))
    loaded.cast(torch.float32)
    return loaded


@pytest.fixture(scope="module")
def patcher(lm):
    return Patcher(lm, (HOOK,))


@pytest.fixture(scope="module")
def pair():
    ids = np.random.default_rng(0).integers(10, 90, (2, 9))
    ids[1, :3] = ids[0, :3]
    return PairIds(ids[0], ids[1], answer=20, wrong=30, first=3)


@pytest.fixture(scope="module")
def reading(patcher, pair):
    return read_pair(patcher, pair)


def test_a_whole_patched_stream_gives_the_other_prediction(patcher, pair, reading):
    positions = torch.arange(len(pair.clean))
    for layer in sorted({hook.layer for hook in patcher.components}):
        hook = HookPoint("resid_post", layer)
        patches = [
            Patch(hook, positions, reading.corrupt.values[hook]),
            Patch(hook, positions, reading.clean.values[hook]),
        ]
        changed, same = patcher.patched(pair, patches, (0, 1), 2)
        assert (
            changed == pytest.approx(reading.corrupt.metric, abs=1e-4) != pytest.approx(reading.clean.metric, abs=1e-3)
        )
        assert same == pytest.approx(reading.clean.metric, abs=1e-4)


def test_effects_of_many_rows_are_those_of_one_at_a_time(patcher, pair, reading, monkeypatch):
    effects = component_effects(patcher, pair, reading)
    monkeypatch.setattr("sae.apply.patching.components.ROWS", 3)
    np.testing.assert_allclose(component_effects(patcher, pair, reading).true, effects.true, atol=1e-5)
    place, offset = 1, 2
    hook = patcher.components[place]
    position = torch.tensor([pair.first + offset])
    alone = patcher.patched(pair, [Patch(hook, position, reading.corrupt.values[hook][position])], (0,), 1)[0]
    assert effects.true[place, offset] == pytest.approx(alone - reading.clean.metric, abs=1e-5)
    assert effects.true.shape == (len(patcher.components), len(pair.clean) - pair.first)


def test_estimates_are_the_first_order_of_a_small_patch(patcher, pair, reading):
    """Gradients: of a hundredth of the change; the last layer's earlier positions change nothing."""
    hook, position = HookPoint("attn_out", 0), len(pair.clean) - 1
    change = reading.corrupt.values[hook][position] - reading.clean.values[hook][position]
    values = reading.clean.values[hook][position] + 0.01 * change
    small = patcher.patched(pair, [Patch(hook, torch.tensor([position]), values[None])], (0,), 1)[0]
    estimate = float(change @ reading.coefficients["gradient"][hook][position])
    assert 100 * (small - reading.clean.metric) == pytest.approx(estimate, rel=0.05, abs=2e-3)
    last = HookPoint("resid_post", max(h.layer for h in patcher.components))
    for coefficients in reading.coefficients.values():
        assert coefficients[last][:-1].abs().max() == 0 < coefficients[last][-1].abs().max()


def test_integrated_gradients_of_the_input_add_up_to_the_change_of_the_prediction(lm, pair):
    """Completeness (Sundararajan et al. 2017): sum of (x' - x) mean gradient = M(x') - M(x)."""
    start = HookPoint("resid_pre", 0)
    patcher = Patcher(lm, (start,))
    clean, corrupt = (patcher.read(ids, pair) for ids in (pair.clean, pair.corrupt))
    mean_gradient = patcher.integrated(pair, steps=64)[start]
    added = float(((corrupt.values[start] - clean.values[start]) * mean_gradient).sum())
    assert added == pytest.approx(corrupt.metric - clean.metric, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"token_norm": True}])
def test_latents_are_patched_alone_and_together(patcher, pair, reading, settings):
    sae = build(TopKConfig(name="x", hook=HOOK, d_sae=64, k=6, **settings), 32).eval()
    sae.initialise(torch.Generator().manual_seed(1), torch.zeros(32))
    changes = latent_changes(sae, HOOK, pair, reading)
    assert (changes.positions >= pair.first).all() and len(changes.latents) > 6
    with torch.no_grad():  # the change of the reconstruction, with the clean token's own scale
        both = [
            sae.decode(sae.encode(r.values[HOOK])._replace(mean=None, deviation=None))
            for r in (reading.clean, reading.corrupt)
        ]
    deviation = sae.prepared(reading.clean.values[HOOK]).deviation
    total = torch.zeros_like(both[0]).index_add_(0, changes.positions, changes.parts)
    expected = (both[1] - both[0]) * (1 if deviation is None else deviation)
    torch.testing.assert_close(total[pair.first :], expected[pair.first :], atol=1e-5, rtol=1e-4)

    latent = int(changes.latents[0])
    rows = np.flatnonzero(changes.latents.numpy() == latent)
    one = single_effects(patcher, HOOK, pair, reading, changes=changes, rows=rows)
    all_places, none = latent_effects(
        patcher, HOOK, pair, reading, changes=changes, latents=[latent, 63 if latent != 63 else 62]
    )
    if len(rows) == 1:
        assert all_places == pytest.approx(one[0], abs=1e-5)
    whole = whole_effects(patcher, HOOK, pair, reading, changes=changes)
    assert whole.activation == pytest.approx(reading.corrupt.metric - reading.clean.metric, abs=1e-4)
    assert whole.code != pytest.approx(whole.activation, abs=1e-6) and np.isfinite([none, whole.code]).all()


def test_pairs_that_cannot_be_laid_over_each_other_are_refused(lm, tmp_path):
    good = PromptPair("a b c d", "a b d d", "e", "f")
    assert ids_of(lm, good).first >= 1
    for changed, said in (
        ({"corrupt": "a b c d e f g"}, "as many of each"),
        ({"corrupt": good.clean}, "are the same"),
        ({"wrong": good.answer}, "same token"),
        ({"clean": "a " * 400, "corrupt": "b " * 400}, "more than 256 tokens"),
    ):
        with pytest.raises(DataError, match=said):
            ids_of(lm, good._replace(**changed))
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(good._asdict()) + '\n{"clean": "a"}\n')
    with pytest.raises(DataError, match=r"line 2 is not an object"):
        read_pairs(path)


def test_made_pairs_differ_in_who_gives(lm, monkeypatch):
    vocabulary = [lm.tokenizer.decode([token]) for token in range(len(lm.tokenizer))]
    words = [text[1:] for text in vocabulary if text.startswith(" ") and text[1:].isalpha()][:4]
    monkeypatch.setattr("sae.apply.patching.prompts.NAMES", ("no name that is one token", *words))
    for pair in indirect_objects(lm, 5, seed=0):
        assert pair.answer != pair.wrong and pair.clean.split(", ")[0] == pair.corrupt.split(", ")[0]
        assert pair.clean.split(", ")[1].startswith(pair.wrong.strip())


def test_correlation_of_what_does_not_vary_is_no_number():
    assert np.isnan(correlation(np.ones(3), np.arange(3.0))) and correlation(
        np.arange(3.0), 2 * np.arange(3.0)
    ) == pytest.approx(1)


def test_the_command_writes_what_predictions_hang_on(finished, lm, tmp_path):
    run = copy_run(finished, tmp_path / "run")
    folder = run / "dictionaries" / "first"
    usable = []
    for a, b in itertools.permutations(["state", "river", "music", "train", "model", "paper"], 2):
        line = PromptPair(f"the {a} of the", f"the {b} of the", "a", "t")
        with contextlib.suppress(DataError):  # the tiny tokenizer cuts words into different numbers of tokens
            ids_of(lm, line)
            usable.append(line._asdict())
    assert len(usable) >= 4
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in usable[:6]))
    done = run_here("patch", folder, "--pairs", pairs, "--name", "p")
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings" / "p")
    figures = {f.name: f for f in finding.figures}
    assert (
        finding.system == "patch"
        and "relp, latents" in figures
        and "Features that the predictions hang on" in done.stdout
    )
    assert all(
        -1 <= f.value <= 1
        for name, f in figures.items()
        if name.endswith(("resid_post", "latents")) and f.value is not None
    )
    pictures = [table for table in finding.tables if table.is_shaded]
    assert [len(table.rows) for table in pictures] == [lm.n_layers] * 3
    last_stream = pictures[0].rows[-1][1:]  # only the last position of the last layer is read
    assert all(value == pytest.approx(0, abs=1e-5) for value in last_stream[:-1])
    assert [row[0] for row in finding.tables[-2].rows] == list(range(lm.n_layers))
    assert run_here("patch", folder, "--pairs", pairs, "--most", "2").returncode != 0
