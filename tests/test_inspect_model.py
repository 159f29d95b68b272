"""What `sae inspect-model` says: voids by hand, massive numbers, planted far-off positions, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures import run_here, save_text

from sae.apply.model_inspection import harvest_points, inspect, massive, voids
from sae.model import language_model
from sae.model.hookpoints import Channel
from sae.model.language_model import FolderModel
from sae.stream.harvest import HarvestConfig, Harvester


def test_voids_by_hand():
    # Norms 1, 3, 4, 4.5: changes 2, 1, 0.5. Bounds 0.8 (max - min): 0, 0.8, 1.2.
    assert voids(torch.tensor([[1.0, 3.0, 4.0, 4.5]])).tolist() == [[False, False, True]]
    assert voids(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [[False, True]]  # a layer that shortens


def test_massive_numbers_are_large_in_both_ways():
    x = torch.full((4, 100), 0.05)
    x[1, 7], x[2, 8] = -200.0, 60.0
    assert massive(x).nonzero().tolist() == [[1, 7]]
    assert not massive(x * 1000)[1, 8] and not massive(torch.full((4, 10), 500.0)).any()


def test_a_position_made_far_off_is_told(tiny_model):
    lm = language_model.load(FolderModel(source="folder", path=tiny_model), torch.device("cpu"))
    loud = 9
    lm.model.get_input_embeddings().weight.data[loud] *= 300
    channels = tuple(map(Channel, harvest_points([0, 1, 2])))
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 90, (12, 24))
    ids[3, 5] = ids[7, 11] = loud
    result = inspect(Harvester(lm, channels, HarvestConfig(), "joined"), ids)
    assert result.far_tokens[0] == (loud, 6)  # two places, three layers
    for a in result.layers:
        assert a.far == pytest.approx(2 / (12 * 23)) and a.share_of_far > 0.9
    assert [a.layer for a in result.layers] == [0, 1, 2] and result.by_position.shape == (3, 8)


def test_the_command_on_a_model(tiny_model, tmp_path):
    text = save_text(tmp_path / "t.jsonl")
    done = run_here(
        "inspect-model",
        tiny_model,
        tiny_model,
        "--text",
        text,
        "--ctx-len",
        "24",
        "--texts",
        "8",
        "--json",
        tmp_path / "o.json",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Layers that lengthen the stream") == 2
    figures = json.loads((tmp_path / "o.json").read_text())[str(tiny_model)]
    assert len(figures["layers"]) == 3 and figures["n_tokens"] == 8 * 24
    for arguments, words in ((("--ctx-len", "1"), "at least 2"), (("--ctx-len", "100000"), "no text has")):
        done = run_here("inspect-model", tiny_model, "--text", text, *arguments)
        assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
