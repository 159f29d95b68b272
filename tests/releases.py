"""Files of published dictionaries, with names, shapes, dtypes and config keys as their releases have them, small."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import save_file

D, M = 24, 96


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows = torch.nn.functional.normalize(draw(M, D), dim=1)
    return {"W_enc": draw(D, M), "W_dec": rows, "b_enc": draw(M), "b_dec": draw(D), "threshold": draw(M).abs() + 0.5}


def gemma_2(root, repo, place):
    folder = root / repo / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in weights().items()})
    return folder


def gemma_3(root, repo, place, point="output", target=None):
    folder, w = root / repo / place, weights()
    folder.mkdir(parents=True)
    tensors = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], **{name: w[name] for name in ("b_enc", "b_dec", "threshold")}}
    layer = place.split("layer_")[1].split("_")[0]
    config = {
        "hf_hook_point_in": f"model.layers.{layer}.{point}", "hf_hook_point_out": None, "width": M, "architecture": "jump_relu",
        "model_name": "google/gemma-3-270m-pt", "affine_connection": False, "l0": 10.0,
    }  # fmt: skip
    if target:
        config["hf_hook_point_out"] = f"model.layers.{layer}.{target}"
    if "affine" in place:
        tensors["affine_skip_connection"] = torch.randn(D, D, generator=torch.Generator().manual_seed(3))
        config["affine_connection"] = True
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def qwen(root, repo, place):
    (root / repo).mkdir(parents=True)
    w = weights()
    torch.save({"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]}, root / repo / place)  # fmt: skip
    return root / repo / place


def llama_scope(root, repo, place):
    folder, w = root / repo / place, weights()
    (folder / "checkpoints").mkdir(parents=True)
    layer = place.split("-L")[1].split("R")[0]
    hyper = {
        "d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.75, "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True,
        "dataset_average_activation_norm": {"in": 2 * D**0.5, "out": 2 * D**0.5}, "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post", "expansion_factor": 4,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(hyper))
    tensors = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T, "encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}  # fmt: skip
    save_file(
        {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()},
        folder / "checkpoints" / "final.safetensors",
    )
    return folder


def llamascopium(root, repo, place, layer=2):
    folder, w = root / repo / place, weights()
    folder.mkdir(parents=True)
    point = f"blocks.{layer}.hook_resid_post"
    config = {
        "sae_type": "sae", "d_model": D, "expansion_factor": M / D, "act_fn": "jumprelu", "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "use_glu_encoder": False, "top_k": 50,
        "hook_point_in": point, "hook_point_out": point, "device": "cuda", "dtype": "torch.float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"], "b_D": w["b_dec"],
        "activation_function.log_jumprelu_threshold": w["threshold"].log(),
        f"dataset_average_activation_norm.{point}": torch.tensor(7.5),
    }  # fmt: skip
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def mwhanna(root, repo, place):
    (root / repo).mkdir(parents=True)
    w = weights()
    tensors = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    save_file(tensors, root / repo / place)
    config = "model_name: Qwen/Qwen3-0.6B\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (root / repo / "config.yaml").write_text(config)
    wandb = f"d_model:\n  value: {D}\nd_feature:\n  value: {M}\nbatch_size:\n  value: 64\n"
    (root / repo / "wandb-config.yaml").write_text(wandb)
    return root / repo / place


def goodfire(root, repo, place):
    (root / repo).mkdir(parents=True)
    w = weights()
    names = {"encoder_linear.weight": w["W_enc"].T, "decoder_linear.weight": w["W_dec"].T}
    names |= {"encoder_linear.bias": w["b_enc"], "decoder_linear.bias": w["b_dec"]}
    torch.save({name: tensor.contiguous() for name, tensor in names.items()}, root / repo / place)
    return root / repo / place


def temporal(root, repo, place, *, scale=0.25, d=D, m=M, k=7, dtype="float32"):
    """Tied weights; attention over 4 heads, with a query of m / 8 numbers."""
    folder, generator = root / repo / place, torch.Generator().manual_seed(2)
    folder.mkdir(parents=True)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    tensors = {"D": torch.nn.functional.normalize(draw(m, d), dim=1), "b": draw(d)}
    for name, rows in (("k_ctx", m // 8), ("q_target", m // 8), ("v_ctx", m), ("c_proj", m)):
        tensors |= {f"attn_layers.0.{name}.weight": draw(rows, m), f"attn_layers.0.{name}.bias": draw(rows)}
    save_file(tensors, folder / "latest_ckpt.safetensors")
    config = f"""llm: {{dimin: {d}, name: some-model}}
data: {{dtype: {dtype}, ctx_len: 500}}
sae: {{exp_factor: {m / d}, n_heads: 4, n_attn_layers: 1, bottleneck_factor: 8, sae_diff_type: topk, kval_topk: {k},
  tied_weights: true, scaling_factor: {scale}}}
"""
    (folder / "conf.yaml").write_text(config)
    return folder


def crosscoder_of_gemma_scope_2(folder, d, per_layer, layers=(3, 5), dtype=torch.float32, **config):
    """Files as published: one a layer that latents read, with w_dec [latents, layers, d]; weights to earlier layers are 0."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number in range(len(layers)):
        w_dec = torch.randn(per_layer, len(layers), d, generator=generator)
        w_dec[:, :number] = 0
        part = {
            "w_enc": torch.randn(d, per_layer, generator=generator),
            "w_dec": w_dec,
            "b_enc": torch.randn(per_layer, generator=generator),
            "b_dec": torch.randn(d, generator=generator),
            "threshold": torch.rand(per_layer, generator=generator) * 4,
        }
        parts.append({name: tensor.to(dtype) for name, tensor in part.items()})
        save_file(parts[-1], folder / f"params_layer_{number}.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "model_name": "gemma-3-1b-pt"} | config)
    )
    return {name: torch.stack([part[name].float() for part in parts]) for name in parts[0]}
