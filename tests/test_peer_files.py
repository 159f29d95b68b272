"""Files that the peers' own packages write, of random settings: read here they compute what the peer's loader makes of
them, or they are refused. Runs where the peers are installed."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import batch, harvested, ids, imported, save_model
from foreign import check_equal, randomise, read
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sae.errors import ArtefactError, ConfigError
from sae.interop import hook_names
from sae.interop.formats import saelens, sparsify
from sae.interop.transfer import export_dictionary
from sae.model.hookpoints import HookPoint
from sae.model.language_model import LanguageModel

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is theirs
D_IN, D_SAE = 12, 48
MANY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@MANY
@given(
    SEEDS,
    st.sampled_from(["standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit"]),
    st.booleans(),
    st.sampled_from(["none", "layer_norm", "expected_average_only_in", "constant_norm_rescale"]),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["none", "hook_z"]),
    st.integers(1, D_SAE),
    st.booleans(),
)
def test_saelens(place, seed, architecture, centred, normalised, dtype, reshaped, k, rescales):
    imported("sae_lens")
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    more = {"k": k, "rescale_acts_by_decoder_norm": rescales} if architecture in ("topk", "abstopk") else {}
    if architecture == "matching_pursuit":  # small numbers, so that all three ways of ending come about
        more = {"max_iterations": k, "residual_threshold": 0.5 * (seed % 3), "stop_on_duplicate_support": rescales}
    config = config_class(
        d_in=D_IN, d_sae=D_SAE, dtype=dtype, apply_b_dec_to_input=centred, normalize_activations=normalised,
        reshape_activations=reshaped, **more,
    )  # fmt: skip
    config.metadata.hook_name = "blocks.3.attn.hook_z" if reshaped == "hook_z" else "blocks.3.hook_mlp_out"
    theirs = sae_class(config)
    randomise(theirs, seed)
    theirs.save_model(place / "saelens")

    loaded = SAE.load_from_disk(place / "saelens").to(dtype=torch.float32)
    ours = read(place / "saelens", "saelens", hook=None)
    assert str(ours.config.hook) == ("attn_z.3" if reshaped == "hook_z" else "mlp_out.3")
    x = batch(64, seed).x * (1.0 if seed % 2 else 0.02)
    loaded.turn_off_forward_pass_hook_z_reshaping()
    with torch.no_grad():
        acts = loaded.encode(x)
        parts = torch.cat([acts.relu(), (-acts).relu()], dim=1) if architecture == "abstopk" else acts
        check_equal(parts, loaded.decode(acts), ours, x)


@MANY
@given(
    SEEDS, st.booleans(), st.booleans(), st.sampled_from([1, 2]), st.sampled_from([1, 4]), st.integers(1, D_SAE),
    st.sampled_from(["none", "constant_scalar_rescale", "layer_norm"]),
)  # fmt: skip
def test_saelens_temporal(place, seed, tied, centred, n_layers, n_heads, k, normalised):
    imported("sae_lens")
    from sae_lens import SAE
    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    config = TemporalSAEConfig(
        d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=centred, normalize_activations=normalised, n_heads=n_heads,
        n_attn_layers=n_layers, bottleneck_factor=4, kval_topk=k, tied_weights=tied, activation_normalization_factor=0.3,
    )  # fmt: skip
    config.metadata.hook_name = "blocks.3.hook_resid_post"
    theirs = TemporalSAE(config)
    randomise(theirs, seed)
    theirs.save_model(place / "temporal")
    if normalised == "layer_norm" or not (tied or centred):
        with pytest.raises(ArtefactError):
            read(place / "temporal", "saelens", hook=None)
        return

    ours = read(place / "temporal", "saelens", hook=None)
    assert [str(hook) for hook in ours.config.reads] == ["resid_post.3", "predicted_resid_post.3"]
    check_temporal(SAE.load_from_disk(place / "temporal"), ours, seed)
    if seed % 10 == 0:  # and the way back
        shutil.rmtree(place / "back", ignore_errors=True)
        export_dictionary(place / "temporal-ours", "saelens", place / "back")
        check_temporal(SAE.load_from_disk(place / "back"), ours, seed)


def check_temporal(theirs, ours, seed):
    x = batch(40, seed).x.reshape(4, 10, D_IN) * 30  # their codes are small multiples of the input
    with torch.no_grad():
        rows = torch.cat([x, ours.predict(x)], dim=2).flatten(0, 1)
        code = ours.encode(rows)
        acts = torch.zeros(40, D_SAE).scatter_add(1, code.top_indices, code.top_acts)
        for expected, mine in ((theirs.encode(x), acts), (theirs(x), ours.decode(code, rows))):
            assert (expected.flatten(0, 1) - mine).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1e-30)


@MANY
@given(
    SEEDS,
    st.sampled_from(["standard", "gated", "jumprelu", "topk"]),
    st.sampled_from(["relu", "topk", "tanh-relu", "topk_without_k"]),
    st.sampled_from([None, False, True, "none", "layer_norm"]),
    st.sampled_from([None, 1.0, 2.0]),
    st.booleans(),
    st.integers(1, D_SAE),
)
def test_saelens_3_to_5(place, seed, architecture, activation, normalised, scaling, centred, k):
    """SAELens 6 is the judge; it leaves out activations that it does not know, and those are refused here."""
    imported("sae_lens")
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class
    from safetensors.torch import save_file

    path = place / "old"
    path.mkdir(exist_ok=True)
    sae_class, config_class = get_sae_class(architecture)
    state = sae_class(config_class(d_in=D_IN, d_sae=D_SAE)).state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=generator) * 0.4 for name, t in state.items()}
    config: dict[str, Any] = {
        "architecture": architecture, "model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_pre", "hook_layer": 2,
        "hook_head_index": None, "d_in": D_IN, "d_sae": D_SAE, "context_size": 128, "apply_b_dec_to_input": centred,
        "dtype": "torch.float32", "device": "cpu", "dataset_path": "x", "dataset_trust_remote_code": True,
        "normalize_activations": normalised, "prepend_bos": True, "sae_lens_training_version": "5.1.0",
        "activation_fn_str": activation.partition("_")[0], "activation_fn_kwargs": {"k": k} if activation == "topk" else {},
        "finetuning_scaling_factor": scaling is not None,
    }  # fmt: skip
    save_file(
        state | ({} if scaling is None else {"scaling_factor": torch.full((D_SAE,), scaling)}),
        path / "sae_weights.safetensors",
    )
    (path / "cfg.json").write_text(json.dumps(config))

    is_topk = activation == "topk"
    is_read = (activation == "relu" and architecture != "topk") or (is_topk and architecture in ("standard", "topk"))
    if not is_read or normalised is True or scaling == 2.0:
        with pytest.raises(ArtefactError):
            read(path, "saelens", hook=None)
        return
    theirs, ours, x = SAE.load_from_disk(path), read(path, "saelens", hook=None), batch(64, seed).x
    assert str(ours.config.hook) == "resid_pre.2" and (not is_topk or ours.config.k == k)
    with torch.no_grad():
        acts = theirs.encode(x)
        check_equal(acts, theirs.decode(acts), ours, x)


@MANY
@given(
    SEEDS,
    st.sampled_from([
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE", "IdentityDict",
    ]),
    st.integers(1, D_SAE),
    st.sampled_from([-1.0, 0.0, 0.3]),
)  # fmt: skip
def test_dictionary_learning(place, seed, name, k, threshold):
    imported("dictionary_learning")
    import dictionary_learning.dictionary as simple
    from dictionary_learning import utils

    path = place / "dl"
    path.mkdir(exist_ok=True)
    kept = {"k": k} if "TopK" in name else {}
    groups = {"group_sizes": [10, 38]} if name.startswith("Matryoshka") else {}
    theirs = (
        simple.IdentityDict(D_IN) if name == "IdentityDict" else getattr(utils, name)(D_IN, D_SAE, **kept, **groups)
    )
    randomise(theirs, seed)
    if kept:
        theirs.threshold.fill_(threshold)
    torch.save(theirs.state_dict(), path / "ae.pt")
    trainer = {
        "dict_class": name,
        "lm_name": "m",
        "layer": 5,
        "submodule_name": "resid_post_layer_5",
        "lr": 1e-3,
        **kept,
    }
    (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))

    if name == "IdentityDict" or (name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE") and threshold < 0):
        with pytest.raises(ArtefactError):
            read(path, "dictionary_learning", hook=None)
        return
    loaded, _ = utils.load_dictionary(str(path), device="cpu")
    ours, x = read(path, "dictionary_learning", hook=None), batch(64, seed).x
    assert str(ours.config.hook) == "resid_post.5"
    with torch.no_grad():
        acts = loaded.encode(x)
        check_equal(acts, loaded.decode(acts), ours, x)


@MANY
@given(
    SEEDS, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(1, D_SAE),
    st.sampled_from(["topk", "topk", "groupmax"]),
)  # fmt: skip
def test_sparsify(place, seed, transcodes, skips, multi, normalises, k, activation):
    module = imported("sparsify")
    config = module.SparseCoderConfig(
        activation=activation, num_latents=D_SAE if seed % 2 else 0, expansion_factor=D_SAE // D_IN, k=k, multi_topk=multi,
        normalize_decoder=normalises, skip_connection=skips, transcode=transcodes,
    )  # fmt: skip
    theirs = module.SparseCoder(D_IN, config)
    randomise(theirs, seed)
    path = place / "gpt_neox.layers.4"
    theirs.save_to_disk(path)

    if activation == "groupmax" or (skips and not transcodes):
        with pytest.raises(ArtefactError):
            read(path, "sparsify")
        return
    hooks = {"hook": "mlp_in.4", "writes": "mlp_out.4"} if transcodes else {"hook": None}
    loaded, ours, x = module.SparseCoder.load_from_disk(path), read(path, "sparsify", **hooks), batch(64, seed).x
    assert str(ours.config.writes[0]) == ("mlp_out.4" if transcodes else "resid_post.4")
    with torch.no_grad():
        code = loaded.encode(x)
        acts = torch.zeros(len(x), D_SAE).scatter_add(1, code.top_indices, code.top_acts)
        x_hat = loaded.decode(code.top_acts, code.top_indices)  # its forward() decodes 4k latents if it trains on them
        check_equal(acts, x_hat if loaded.W_skip is None else x_hat + x @ loaded.W_skip.mT, ours, x)


def test_all_settings_of_the_peers_configs_are_known():
    """A setting that a new version of a peer adds is refused until somebody has seen what it does."""
    imported("sae_lens")
    from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    read_here = {*saelens.ARCHITECTURES.values(), "batchtopk", "matryoshka_batchtopk"}
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        for name, (_, config_class) in registry.items():
            assert name not in read_here or {f.name for f in fields(config_class)} <= saelens.KEYS, name
    assert {"hook_name_out", "hook_head_index"} <= LLM_METADATA_KEYS  # read in `_facts`
    assert {f.name for f in fields(imported("sparsify").SparseCoderConfig)} <= sparsify.KEYS


def test_hook_points_of_saelens_carry_what_ours_carry(tmp_path):
    """Names are compared by what flows there, in a model that TransformerLens itself loads."""
    bridge = imported("transformer_lens.model_bridge").TransformerBridge
    folder = save_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights = {name: t + 0.3 if "norm" in name else t for name, t in weights.items()}  # a norm of ones shows nothing
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lm = LanguageModel(hf, SimpleNamespace(all_special_ids=[0], bos_token_id=0), "x", "", "", False)
    tokens = ids()
    ours = harvested(lm, [HookPoint(site, 1) for site in hook_names.SITES], tokens)
    _, cache = bridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32).run_with_cache(
        torch.tensor(tokens)
    )

    for name in (*hook_names.SITES.values(), *hook_names.SYNONYMS):
        theirs = cache[f"blocks.1.{name}"]
        mine = ours[HookPoint.parse(hook_names.our_hook(f"blocks.1.{name}"))].float()
        torch.testing.assert_close(theirs.reshape(*theirs.shape[:2], -1), mine, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["blocks.3.hook_resid_mid", "blocks.3.ln2.hook_normalized", "blocks.3.mlp.hook_out"])
def test_hook_points_that_saedex_has_not_are_asked_for(tmp_path, name):
    imported("sae_lens")
    from sae_lens import StandardSAE, StandardSAEConfig

    config = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)
    config.metadata.hook_name = name
    StandardSAE(config).save_model(tmp_path / "x")
    with pytest.raises(ConfigError, match=f"says '{name}', which is no hook point that saedex knows for certain"):
        read(tmp_path / "x", "saelens", hook=None)
