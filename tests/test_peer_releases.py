"""Releases in the layouts that they are published in: what saedex makes of the files is what SAELens makes of them."""

from __future__ import annotations

import os

import pytest
import torch
from fixtures import imported
from releases import D, M, gemma_2, gemma_3, goodfire, llama_scope, mwhanna, qwen, temporal

from sae.interop.formats import FORMATS
from sae.interop.origin import origin_of
from sae.interop.transfer import converted

pytestmark = [
    pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="SAELens is installed beside the peers (make peers)"),
    pytest.mark.filterwarnings("ignore"),
]
RELEASES = {
    "gemma-scope": (gemma_2, "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82", {}),
    "gemma-scope transcoder": (gemma_2, "gemma_2_transcoder_huggingface_loader", "google/gemma-scope-2b-pt-transcoders",
                               "layer_3/width_16k/average_l0_9", {}),
    "gemma-scope-2": (gemma_3, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-270m-pt",
                      "resid_post/layer_9_width_16k_l0_small", {}),
    "gemma-scope-2 mlp": (gemma_3, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-270m-pt",
                          "mlp_out/layer_9_width_16k_l0_small", {"point": "post_feedforward_layernorm.output"}),
    "gemma-scope-2 attention": (gemma_3, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-270m-pt",
                                "attn_out/layer_9_width_16k_l0_small", {"point": "self_attn.o_proj.input"}),
    "gemma-scope-2 transcoder": (gemma_3, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-270m-pt",
                                 "transcoder/layer_9_width_16k_l0_small",
                                 {"point": "pre_feedforward_layernorm.output", "target": "post_feedforward_layernorm.output"}),
    "gemma-scope-2 skip transcoder": (gemma_3, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-270m-pt",
                                      "transcoder_all/layer_9_width_16k_l0_small_affine",
                                      {"point": "pre_feedforward_layernorm.output", "target": "post_feedforward_layernorm.output"}),
    "qwen-scope": (qwen, "qwen_scope_sae_huggingface_loader", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer14.sae.pt", {}),
    "llama-scope": (llama_scope, "llama_scope_sae_huggingface_loader", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", {}),
    "mwhanna": (mwhanna, "mwhanna_transcoder_huggingface_loader", "mwhanna/qwen3-0.6b-transcoders-lowl0", "layer_14.safetensors", {}),
    "goodfire": (goodfire, "get_goodfire_huggingface_loader", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
                 "Llama-3.1-8B-Instruct-SAE-l19.pth", {}),
}  # fmt: skip


def theirs(monkeypatch, root, loader, repo, place):
    """SAELens' own module of the files."""
    imported("sae_lens")
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class
    from safetensors import safe_open

    def local(repo_id, filename, subfolder=None, **_):
        path = root / repo_id / (subfolder or "") / filename
        if not path.exists():
            raise loaders.EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id, filename):
        with safe_open(root / repo_id / filename, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    config, tensors, _ = getattr(loaders, loader)(repo, place, device="cpu")
    config = loaders.handle_config_defaulting(
        {**config, "d_in": D, "d_sae": M, "dtype": "float32"} | ({"d_out": D} if "d_out" in config else {})
    )
    sae_class, config_class = get_sae_class(config["architecture"])
    sae = sae_class(config_class.from_dict(config))
    sae.process_state_dict_for_loading(tensors)
    sae.load_state_dict(tensors)
    return sae.float(), config


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_computes_what_saelens_makes_of_it(release, tmp_path, monkeypatch):
    write, loader, repo, place, more = RELEASES[release]
    origin = origin_of(str(write(tmp_path, repo, place, **more)))
    ours, facts = converted(FORMATS[origin.format], origin.path, "ours", known=origin.facts)
    sae, config = theirs(monkeypatch, tmp_path, loader, repo, place)
    if release == "llama-scope":  # they fold the scale when it is measured
        sae.fold_activation_norm_scaling_factor(0.5)
    sae.turn_off_forward_pass_hook_z_reshaping()

    x = torch.randn(300, D, generator=torch.Generator().manual_seed(9)) * 2
    with torch.no_grad():
        acts = sae.encode(x)
        x_hat = sae(x)
        code = ours.encode(x)
    dense = torch.zeros(len(x), M).scatter_add(1, code.top_indices, code.top_acts)
    assert (dense - acts).abs().max() <= 1e-5 * acts.abs().max() and (acts > 0).any()
    assert (ours.decode(code, x) - x_hat).abs().max() <= 1e-5 * x_hat.abs().max()
    expected_model = {"gemma-scope": "google/gemma-2-2b", "gemma-scope transcoder": "google/gemma-2-2b"}
    assert facts["model"] == expected_model.get(release, config.get("model_name") or config["metadata"]["model_name"])


def test_a_temporal_release_codes_what_the_tokens_before_do_not_predict(tmp_path, monkeypatch):
    repo, place = "canrager/temporalSAEs", "gemma-2-2B/layer_12/temporal"
    origin = origin_of(str(temporal(tmp_path, repo, place)))
    assert origin.format == "temporal"
    ours, facts = converted(FORMATS["temporal"], origin.path, "ours", hook="resid_post.12")
    sae, config = theirs(monkeypatch, tmp_path, "temporal_sae_huggingface_loader", repo, place)
    assert facts["target"] == "resid_post.12" and config["activation_normalization_factor"] == 0.25

    x = torch.randn(3, 20, D, generator=torch.Generator().manual_seed(9)) * 40
    with torch.no_grad():
        acts, x_hat, predicted = sae.encode(x).flatten(0, 1), sae(x).flatten(0, 1), ours.predict(x)
        rows = torch.cat([x, predicted], dim=2).flatten(0, 1)
        code = ours.encode(rows)
    dense = torch.zeros(60, M).scatter_add(1, code.top_indices, code.top_acts)
    assert (dense - acts).abs().max() <= 1e-5 * acts.abs().max() and (acts > 0).any()
    assert (ours.decode(code, rows) - x_hat).abs().max() <= 1e-5 * x_hat.abs().max()
    assert predicted[:, 1:].norm() > 0.05 * x.norm()


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_own_transcoders_are_read(architecture, tmp_path):
    imported("sae_lens")
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    config = config_class(d_in=D, d_out=D, d_sae=M, dtype="float32", apply_b_dec_to_input=False)
    config.metadata.hook_name, config.metadata.hook_name_out = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"
    sae = sae_class(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if "jumprelu" in architecture:
            sae.threshold.abs_()
    sae.save_model(tmp_path / "theirs")
    loaded = SAE.load_from_disk(tmp_path / "theirs")
    origin = origin_of(str(tmp_path / "theirs"))
    ours, _ = converted(FORMATS[origin.format], origin.path, "ours")
    assert (str(ours.config.reads[0]), str(ours.config.writes[0])) == ("mlp_in.3", "mlp_out.3")
    x = torch.randn(200, D, generator=generator)
    with torch.no_grad():
        acts, x_hat, code = loaded.encode(x), loaded(x), ours.encode(x)
    dense = torch.zeros(len(x), M).scatter_add(1, code.top_indices, code.top_acts)
    assert (dense - acts).abs().max() <= 1e-5 * acts.abs().max()
    assert (ours.decode(code, x) - x_hat).abs().max() <= 1e-5 * x_hat.abs().max()


@pytest.mark.parametrize("rescales", [False, True])
def test_latents_of_either_sign_are_read_as_two(rescales, tmp_path):
    imported("sae_lens")
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class("abstopk")
    config = config_class(d_in=D, d_sae=M, dtype="float32", k=5, rescale_acts_by_decoder_norm=rescales)
    config.metadata.hook_name = "blocks.3.hook_resid_post"
    sae = sae_class(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    sae.save_model(tmp_path / "theirs")
    loaded = SAE.load_from_disk(tmp_path / "theirs")
    origin = origin_of(str(tmp_path / "theirs"))
    ours, facts = converted(FORMATS[origin.format], origin.path, "ours")
    assert ours.d_sae == 2 * M and f"{M:,} onwards are the negative parts" in facts["note"]
    x = torch.randn(200, D, generator=generator)
    with torch.no_grad():
        acts, x_hat, code = loaded.encode(x), loaded(x), ours.encode(x)
    dense = torch.zeros(len(x), 2 * M).scatter_add(1, code.top_indices, code.top_acts)
    signed = dense[:, :M] - dense[:, M:]
    assert (signed < 0).any() and (signed > 0).any()
    assert (signed - acts).abs().max() <= 1e-5 * acts.abs().max()
    assert (ours.decode(code, x) - x_hat).abs().max() <= 1e-5 * x_hat.abs().max()
