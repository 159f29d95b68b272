"""Any causal language model of a folder is loaded; what is none is refused in a clear word."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from fixtures import LLAMA, SMALL_MODEL, make_tokenizer, run_here, small_model, write_config
from safetensors.torch import load_file, save_file

from sae.errors import ArtefactError, DataError, NumericError
from sae.model import language_model
from sae.model.hookpoints import HookPoint
from sae.model.language_model import FolderModel
from sae.model.unembed import token_logits
from sae.model.vocabulary import n_ids, token_bytes

BERT = {**SMALL_MODEL, "vocab_size": 320, "intermediate_size": 48, "is_decoder": True}


def load(folder):
    return language_model.load(FolderModel(source="folder", path=folder), torch.device("cpu"))


def save(folder, class_name, **settings):
    """A random model of a class, and a tokenizer, in a folder; returns the folder."""
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(
        model_class.config_class(**{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **settings})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("GPTNeoForCausalLM", {
            "vocab_size": 320, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]], "window_size": 8,
        }),
        ("MambaForCausalLM", {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("OPTForCausalLM", {
            **SMALL_MODEL, "vocab_size": 320, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False,
        }),
        ("CohereForCausalLM", {**LLAMA, "vocab_size": 320, "logit_scale": 0.25}),
        ("Gemma2ForCausalLM", {**LLAMA, "vocab_size": 320, "head_dim": 12, "final_logit_softcapping": 2.0}),
        ("PhiForCausalLM", {**SMALL_MODEL, "vocab_size": 320, "intermediate_size": 48}),
        ("GPTNeoXForCausalLM", {**SMALL_MODEL, "vocab_size": 320, "intermediate_size": 48}),
        ("BertLMHeadModel", BERT),
    ],
)  # fmt: skip
def test_promoted_tokens_are_those_whose_logits_the_model_raises_most(tmp_path, class_name, settings):
    """Also without sdpa, with a projection before the head, scaled or capped logits, biases, a head of several layers."""
    lm = load(save(tmp_path / "model", class_name, **settings))
    rows = torch.nn.functional.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    stream = torch.cat([rows, torch.zeros(1, 32)])
    handle = lm.blocks.modules[-1].register_forward_hook(
        lambda _m, _a, out: (stream[:, None], *out[1:]) if isinstance(out, tuple) else stream[:, None]
    )
    with torch.no_grad():
        logits = lm.model(input_ids=torch.full((7, 1), 5), use_cache=False).logits[:, 0, : len(lm.tokenizer)]
    handle.remove()
    raised = logits[:-1] - logits[-1:]
    logits_of = token_logits(lm, HookPoint("resid_post", 0), rows, 5)
    assert torch.equal(logits_of.promoted, raised.topk(5, dim=1).indices)
    assert torch.equal(logits_of.suppressed, (-raised).topk(5, dim=1).indices)
    if class_name in ("OPTForCausalLM", "PhiForCausalLM", "BertLMHeadModel"):
        expected = (raised - raised.mean(1, keepdim=True)).topk(5, dim=1).values
        torch.testing.assert_close(logits_of.promoted_logits, expected, rtol=1e-4, atol=1e-4)


def test_directions_of_inner_sites_pass_the_norm_after_their_sub_layer():
    """Gemma 2 normalises what its MLP adds: a direction in the MLP's hidden layer is what that norm makes of it."""
    from sae.model.unembed import residual_directions

    lm, hook = small_model("Gemma2"), HookPoint("mlp_hidden", 1)
    block, rows = lm.body.layers[1], torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = block.post_feedforward_layernorm(block.mlp.down_proj(rows))
        torch.testing.assert_close(residual_directions(lm, hook, rows), expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_may_be_longer_than_the_embedding_until_the_text_uses_it(tmp_path, tree):
    folder = save(tmp_path / "model", "LlamaForCausalLM", **{**LLAMA, "vocab_size": len(make_tokenizer(tmp_path))})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "qqqq"])
    tokenizer.save_pretrained(folder)
    lm = load(folder)
    assert lm.token_ids("the cat", 8) and len(token_bytes(lm.tokenizer)) == len(lm.tokenizer)
    assert token_logits(lm, HookPoint("resid_post", 0), torch.eye(32)[:3], 5).promoted.max() < len(lm.tokenizer) - 2
    with pytest.raises(DataError, match=r"'qqqq'.*embeds tokens 0\.\."):
        lm.token_ids("the qqqq", 8)

    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} the cat sat on a mat qqqq " * 30}) + "\n" for n in range(200)))
    config = write_config(tmp_path, tree, model__path=str(folder), text__sources__0__data_files=[str(text)])
    done = run_here("train", config)
    assert done.returncode == 65 and "qqqq" in done.stderr


def test_holes_in_a_vocabulary_are_never_promoted(tmp_path):
    folder = save(tmp_path / "model", "LlamaForCausalLM", **{**LLAMA, "vocab_size": 500})
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = 450
    path.write_text(json.dumps(content))
    lm = load(folder)
    known = set(lm.tokenizer.get_vocab().values())
    assert n_ids(lm.tokenizer) == 451 > len(lm.tokenizer)
    assert len(token_bytes(lm.tokenizer)) == 451 and token_bytes(lm.tokenizer)[400] == b""
    logits = token_logits(lm, HookPoint("resid_post", 0), torch.eye(32), len(known))
    assert all(set(row) == known for row in logits.promoted.tolist())


def test_weights_that_the_files_lack_are_refused(tmp_path):
    """transformers would make them random, and say so only in its log."""
    folder = save(tmp_path / "model", "LlamaForCausalLM", **{**LLAMA, "vocab_size": 320})
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"lack 1 weights .*layers\.1\.mlp\.up_proj"):
        load(folder)


def test_damaged_weights_are_refused(tmp_path):
    folder = save(tmp_path / "model", "LlamaForCausalLM", **{**LLAMA, "vocab_size": 320})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="cannot load it"):
        load(folder)


T5 = {"vocab_size": 320, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 320, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("class_name", "settings", "reason"),
    [
        ("T5ForConditionalGeneration", T5, "has an encoder and a decoder"),
        ("BartForConditionalGeneration", BART, "has an encoder and a decoder"),
        ("BertLMHeadModel", {**BERT, "is_decoder": False}, "depends on the tokens after it"),
        ("ViTModel", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}, "no causal language model"),
    ],
)
def test_other_kinds_of_models_are_refused(tmp_path, class_name, settings, reason):
    with pytest.raises(ArtefactError, match=f"{reason}.*reads models that predict the next"):
        load(save(tmp_path / "model", class_name, **settings))


def test_a_model_inside_a_multimodal_one_is_read(tmp_path):
    """Its config nests the text's; its vision tower has a list of layers as well."""
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    settings = {
        "text_config": {**LLAMA, "vocab_size": 320, "head_dim": 12, "sliding_window": 16},
        "vision_config": {**vision, "image_size": 16, "patch_size": 8},
        "mm_tokens_per_image": 4,
        "image_token_index": 319,
    }
    lm = load(save(tmp_path / "model", "Gemma3ForConditionalGeneration", **settings))
    assert lm.n_layers == 3 and lm.d_model == 32 and "language_model" in lm.blocks.name


def test_weights_that_are_not_finite_are_named():
    from fixtures import harvested

    lm = small_model("Llama")
    with torch.no_grad():
        lm.body.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(NumericError, match=r"layers\.1\.mlp\.up_proj\.weight.*not finite"):
        harvested(lm, (HookPoint("resid_post", 2),), np.ones((1, 8), np.int64), batch_contexts=1)
    with pytest.raises(NumericError, match=r"layers\.1\.mlp\.up_proj\.weight.*not finite"):
        harvested(lm, (HookPoint("mlp_out", 1),), np.ones((1, 8), np.int64), batch_contexts=1)


def test_overflow_is_told_from_damage():
    from fixtures import harvested

    lm = small_model("Llama")
    with torch.no_grad():
        lm.body.layers[1].mlp.up_proj.weight *= 1e30
        lm.body.layers[1].mlp.gate_proj.weight *= 1e30
    with pytest.raises(NumericError, match=r"layers\.2.*weights are finite.*overflows in float32"):
        harvested(lm, (HookPoint("resid_post", 2),), np.ones((1, 8), np.int64), batch_contexts=1)
