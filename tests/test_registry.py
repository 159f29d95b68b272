"""Ids of published dictionaries: repository, place, layout, model and hook point, without a network."""

from __future__ import annotations

import os

import pytest
from fixtures import run_here

from sae.interop import saelens_list
from sae.interop.families import EXAMPLES
from sae.interop.formats import FORMATS
from sae.interop.origin import release_called
from sae.model.hookpoints import HookPoint

GEMMA_2, GEMMA_3 = "google/gemma-2-2b", "google/gemma-3-270m"


@pytest.mark.parametrize(
    ("what", "repo", "path", "form", "facts"),
    [
        (EXAMPLES[0], "google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82/params.npz", "gemma_npz",
         {"model": GEMMA_2, "hook": "resid_post.12", "d_sae": 16384, "l0": 82.0}),
        ("google/gemma-scope-9b-it-att/layer_20/width_131k/average_l0_12", "google/gemma-scope-9b-it-att",
         "layer_20/width_131k/average_l0_12/params.npz", "gemma_npz",
         {"model": "google/gemma-2-9b-it", "hook": "attn_z.20", "d_sae": 131072, "l0": 12.0}),
        ("gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_9", "google/gemma-scope-2b-pt-transcoders",
         "layer_3/width_16k/average_l0_9/params.npz", "gemma_npz",
         {"model": GEMMA_2, "hook": "mlp_in.3", "target": "mlp_out.3", "d_sae": 16384, "l0": 9.0}),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "google/gemma-scope-2b-pt-res",
         "embedding/width_4k/average_l0_6/params.npz", "gemma_npz",
         {"model": GEMMA_2, "hook": "resid_pre.0", "d_sae": 4096, "l0": 6.0, "scale": 1 / 48}),
        (EXAMPLES[1], "google/gemma-scope-2-270m-pt", "resid_post/layer_9_width_16k_l0_small", "gemma_scope_2",
         {"model": GEMMA_3, "hook": "resid_post.9", "d_sae": 16384}),
        ("gemma-scope-2-1b-pt-crosscoder/layer_7_13_17_22_width_262k_l0_medium", "google/gemma-scope-2-1b-pt",
         "crosscoder/layer_7_13_17_22_width_262k_l0_medium", "gemma_scope_2",
         {"model": "google/gemma-3-1b-pt", "hook": "resid_post.7", "d_sae": 262144,
          "more_hooks": ["resid_post.13", "resid_post.17", "resid_post.22"]}),
        ("google/gemma-scope-2-4b-it/transcoder_all/layer_0_width_262k_l0_big_affine", "google/gemma-scope-2-4b-it",
         "transcoder_all/layer_0_width_262k_l0_big_affine", "gemma_scope_2",
         {"model": "google/gemma-3-4b-it", "hook": "mlp_in.0", "target": "mlp_out.0", "d_sae": 262144}),
        (EXAMPLES[2], "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer14.sae.pt", "qwen_scope",
         {"model": "Qwen/Qwen3-1.7B-Base", "hook": "resid_post.14", "d_sae": 32768, "l0": 50.0}),
        (EXAMPLES[3], "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", "llama_scope",
         {"model": "meta-llama/Llama-3.1-8B", "hook": "resid_post.15", "d_sae": 32768}),
        (EXAMPLES[4], "mwhanna/qwen3-0.6b-transcoders-lowl0", "layer_14.safetensors", "transcoder_layer", {}),
    ],
)  # fmt: skip
def test_ids_follow_the_naming_rules(what, repo, path, form, facts):
    release = release_called(what)
    assert release is not None and (release.repo, release.path, release.format) == (repo, path, form)
    known = {key: value for key, value in release.facts.items() if key in facts or key == "hook"}
    assert known == facts


def test_other_texts_are_no_ids():
    for text in (
        "gpt2",
        "google/gemma-2-2b",
        "google/gemma-scope-2b-pt-res",
        "gemma-scope-2-270m-pt-resid_post/layer_9",
    ):
        assert release_called(text) is None


def test_the_list_says_how_to_get_one_where_there_is_none(monkeypatch):
    monkeypatch.setattr(saelens_list, "_text", lambda: "")
    saelens_list._places.cache_clear()
    try:
        done = run_here("list")
    finally:
        saelens_list._places.cache_clear()
    assert done.returncode == 0 and "pip install sae-lens" in done.stdout and EXAMPLES[0] in done.stdout


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="SAELens is installed beside the peers (make peers)")
def test_every_id_of_saelens_is_known():
    releases = list(saelens_list.all_releases())
    assert len(releases) > 13_000
    unread = {release.layout for release in releases if release.format is None}
    assert unread == {
        "connor_rob_hook_z", "mntss_clt_layer_transcoder", "deepseek_r1",
    }  # fmt: skip
    for release in releases:
        assert release.repo and release.path and (release.format is None or release.format in FORMATS)
        for key in ("hook", "target"):
            assert key not in release.facts or HookPoint.parse(release.facts[key])
    for release in releases[:: len(releases) // 40]:
        saelens_list._places.cache_clear()
        saelens_list.releases_of.cache_clear()
        assert release_called(release.id) == release


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="SAELens is installed beside the peers (make peers)")
def test_the_list_is_searched():
    done = run_here("list", "gemma-scope-2-270m-pt resid_post.9")
    assert "layer_9_width_16k_l0_small" in done.stdout and "resid_post.9" in done.stdout and "CC BY 4.0" in done.stdout
