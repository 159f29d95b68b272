"""Foreign formats: what is exported is read back equal; what is read is never run; what does not fit writes nothing."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fixtures import PROVENANCE, batch, make, published, run_here
from releases import crosscoder_of_gemma_scope_2, temporal

from sae.architectures import ARCHITECTURES
from sae.errors import ArtefactError, ConfigError, LockedError, SaedexError
from sae.interop.foreign_weights import largest_difference
from sae.interop.origin import origin_of
from sae.interop.transfer import FORMATS, converted, export_dictionary, import_dictionary
from sae.publish import dictionary

HOLDS = {
    "saelens": {"topk", "gradient", "batch_topk", "matryoshka", "top_afa", "jumprelu", "relu", "gated"},
    "dictionary_learning": {"topk", "gradient", "batch_topk", "matryoshka", "top_afa", "jumprelu", "relu", "gated"},
    "sparsify": {"topk", "gradient", "transcoder"},
    "gemma_npz": {"batch_topk", "matryoshka", "top_afa", "jumprelu", "relu"},
    "gemma_scope_2": {"batch_topk", "matryoshka", "top_afa", "jumprelu", "relu"},
}


def test_every_format_of_the_command_line_is_there():
    assert set(FORMATS) == {
        *HOLDS,
        "goodfire",
        "llama_scope",
        "llamascopium",
        "openai",
        "qwen_scope",
        "temporal",
        "transcoder_layer",
    }


@pytest.mark.parametrize("form", HOLDS)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_round_trips_and_refusals(tmp_path, form, name):
    folder, target = published(tmp_path / "mine", name), tmp_path / "theirs"
    if name not in HOLDS[form]:
        with pytest.raises(ConfigError):
            export_dictionary(folder, form, target)
        assert not target.exists()
        return
    lossy = export_dictionary(folder, form, target)
    assert (lossy is not None) == (name == "top_afa")
    hook, writes = ("mlp_in.0", "mlp_out.0") if name == "transcoder" else ("resid_post.0", None)
    back = import_dictionary(target, form, tmp_path / "back", hook, writes=writes)
    if not lossy:
        assert largest_difference(dictionary.load(folder), back, 8.0) <= 1e-5
    assert torch.equal(dictionary.load(tmp_path / "back").W_dec, back.W_dec)


def test_skip_transcoders_and_token_norm_survive(tmp_path):
    skip = published(tmp_path / "skip", "transcoder", skip=True)
    export_dictionary(skip, "sparsify", tmp_path / "theirs")
    back = import_dictionary(tmp_path / "theirs", "sparsify", tmp_path / "back", "mlp_in.0", writes="mlp_out.0")
    assert largest_difference(dictionary.load(skip), back, 8.0) <= 1e-5
    for number, norm in enumerate((True, "length")):
        normed = published(tmp_path / f"normed{number}", "topk", token_norm=norm)
        export_dictionary(normed, "saelens", tmp_path / f"lens{number}")
        again = import_dictionary(tmp_path / f"lens{number}", "saelens", tmp_path / f"again{number}", None)
        assert again.config.token_norm == norm and largest_difference(dictionary.load(normed), again, 8.0) <= 1e-5


def test_temporal_dictionaries_go_to_saelens_and_back(tmp_path):
    temporal(tmp_path, "a", "b", d=12, m=64, k=5, scale=0.25)
    mine = import_dictionary(tmp_path / "a" / "b", "temporal", tmp_path / "mine", "resid_post.3")
    with pytest.raises(ConfigError, match="sparsify has no temporal dictionaries"):
        export_dictionary(tmp_path / "mine", "sparsify", tmp_path / "theirs")
    export_dictionary(tmp_path / "mine", "saelens", tmp_path / "theirs")
    back = import_dictionary(tmp_path / "theirs", "saelens", tmp_path / "back", None)
    assert back.config.reads == mine.config.reads and back.config.context == mine.config.context
    x = 30 * torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(back.predict(x), mine.predict(x), rtol=1e-4, atol=1e-4)
    rows = torch.cat([x, mine.predict(x)], dim=2).flatten(0, 1)
    torch.testing.assert_close(back(rows), mine(rows), rtol=1e-4, atol=1e-4)


def test_weights_for_scaled_activations_read_and_write_unscaled_ones(tmp_path):
    export_dictionary(published(tmp_path / "mine", "jumprelu"), "gemma_npz", tmp_path / "theirs")
    plain, scaled = (
        converted(FORMATS["gemma_npz"], tmp_path / "theirs", "x", hook="resid_pre.0", known=known)[0]
        for known in ({}, {"scale": 0.25})
    )
    x = batch(40).x
    torch.testing.assert_close(scaled(4 * x), 4 * plain(x), rtol=1e-4, atol=1e-4)


def test_matching_pursuit_goes_to_saelens_where_its_encoder_is_its_decoder(tmp_path):
    folder = tmp_path / "mine"
    sae = make("matching_pursuit", least_residual=0.5, stops_on_repeat=False)
    torch.nn.init.zeros_(sae.b_enc)
    dictionary.publish(folder, sae, PROVENANCE)
    export_dictionary(folder, "saelens", tmp_path / "theirs")
    back = import_dictionary(tmp_path / "theirs", "saelens", tmp_path / "back", None)
    assert largest_difference(dictionary.load(folder), back, 8.0) <= 1e-5
    assert float(back.residual_threshold) == 0.5 and not back.config.stops_on_repeat
    config = json.loads((tmp_path / "theirs" / "cfg.json").read_text())
    assert config["max_iterations"] == back.config.k
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(config | {"residual_threshold": "low"}))
    with pytest.raises(ArtefactError, match="residual_threshold is 'low'"):
        FORMATS["saelens"].read(tmp_path / "theirs")


def test_sites_survive_and_transcoders_of_other_kinds_are_refused(tmp_path):
    folder = published(tmp_path / "mine", "relu", hook="mlp_out.5")
    for form in ("dictionary_learning", "saelens"):
        export_dictionary(folder, form, tmp_path / form)
        assert str(import_dictionary(tmp_path / form, form, tmp_path / f"{form}-back", None).config.hook) == "mlp_out.5"
    gated = published(tmp_path / "gated", "gated", hook="mlp_out.5")
    export_dictionary(gated, "saelens", tmp_path / "theirs")
    with pytest.raises(ConfigError, match="TopK, JumpReLU and ReLU transcoders"):
        import_dictionary(tmp_path / "theirs", "saelens", tmp_path / "new", "mlp_in.5", writes="mlp_out.5")
    assert not (tmp_path / "new").exists()


def test_a_lossy_export_says_so_in_the_file_and_on_the_terminal(tmp_path):
    folder = published(tmp_path / "mine", "top_afa")
    done = run_here("export", folder, "--to", "saelens", tmp_path / "theirs")
    assert done.returncode == 0 and "LOSSY: k(x) of top-AFA became one threshold" in done.stdout
    assert "one threshold" in json.loads((tmp_path / "theirs" / "cfg.json").read_text())["metadata"]["lossy"]
    sae, x = dictionary.load(folder), batch(500).x
    l0 = (sae.encode(x).top_acts > 0).sum(1).float().mean().item()
    back = import_dictionary(tmp_path / "theirs", "saelens", tmp_path / "back", None)
    assert (back.encode(x).top_acts > 0).sum(1).float().mean().item() == pytest.approx(l0, rel=0.2)


def test_a_wrong_writer_is_caught_by_the_check(tmp_path, monkeypatch):
    folder, right = published(tmp_path / "mine", "topk"), type(FORMATS["saelens"]).read

    def wrong(self, path):
        import dataclasses

        plain = right(self, path)
        return dataclasses.replace(plain, b_enc=plain.b_enc + 0.01)

    monkeypatch.setattr(type(FORMATS["saelens"]), "read", wrong)
    with pytest.raises(ArtefactError, match="the file read back differs"):
        export_dictionary(folder, "saelens", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def openai_file(path, activation="TopK"):
    generator = torch.Generator().manual_seed(0)
    state = {
        "pre_bias": torch.randn(12, generator=generator), "latent_bias": torch.randn(48, generator=generator),
        "encoder.weight": torch.randn(48, 12, generator=generator),
        "decoder.weight": torch.randn(12, 48, generator=generator), "stats_last_nonzero": torch.zeros(48),
        "activation": activation, "activation_state_dict": {"k": 4},
    }  # fmt: skip
    torch.save(state, path)
    return state


def test_openai_files_compute_as_their_code_does(tmp_path):
    state = openai_file(tmp_path / "sae.pt")
    sae = import_dictionary(tmp_path / "sae.pt", "openai", tmp_path / "mine", "resid_post.3")
    x = batch().x
    centred = x - x.mean(1, keepdim=True)
    scale = centred.std(1, keepdim=True) + 1e-5
    pre_acts = (centred / scale - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    top = pre_acts.topk(4, dim=1)
    acts = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
    expected = (acts @ state["decoder.weight"].T + state["pre_bias"]) * scale + x.mean(1, keepdim=True)
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_objects_and_wrong_shapes_are_refused_and_write_nothing(tmp_path, capsys):
    torch.save({"encoder.weight": Evil()}, tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", W_enc=np.array([Evil()], dtype=object))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    export_dictionary(published(tmp_path / "mine", "topk"), "sparsify", tmp_path / "bad")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "bad" / "sae.safetensors")
    save_file({**tensors, "b_dec": torch.zeros(5)}, tmp_path / "bad" / "sae.safetensors")
    capsys.readouterr()
    for path, form, message in [
        ("evil.pt", "openai", "pickled objects"),
        ("evil.npz", "gemma-npz", "pickled objects"),
        ("bad", "sparsify", "b_dec has shape"),
        ("mine", "sparsify", r"cfg.json: cannot be read \(No such file"),
        ("nowhere", "saelens", "no such file"),
    ]:
        with pytest.raises(SaedexError, match=message):
            import_dictionary(tmp_path / path, form, tmp_path / "new", "resid_post.1")
        assert not (tmp_path / "new").exists()
    assert "executed" not in capsys.readouterr().out


def test_the_saebench_adapter_is_dense_and_agrees():
    from sae.interop.saebench import SaeBenchAdapter

    sae = make("topk").eval()
    adapter = SaeBenchAdapter(sae, "some-model", 128)
    x = batch(24).x.view(2, 12, 12)
    acts = adapter.encode(x)
    assert acts.shape == (2, 12, 48) and adapter.cfg.hook_name == "blocks.0.hook_resid_post"
    torch.testing.assert_close(adapter(x).view(-1, 12), sae(x.view(-1, 12)))


@pytest.mark.parametrize("verb", ["export", "import"])
def test_of_several_that_write_one_folder_one_wins_and_the_others_say_so(tmp_path, monkeypatch, verb):
    folder = published(tmp_path / "mine", "topk")
    export_dictionary(folder, "saelens", tmp_path / "file")
    gathered = threading.Barrier(4)

    def attempt(_: int) -> type[Exception] | None:
        gathered.wait()
        try:
            if verb == "export":
                export_dictionary(folder, "saelens", tmp_path / "out" / "x")
            else:
                import_dictionary(tmp_path / "file", "saelens", tmp_path / "out" / "x", None)
        except SaedexError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(attempt, range(4)))
    assert ends.count(None) == 1 and set(ends) <= {None, LockedError, ConfigError}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]
    written = tmp_path / "out" / "x"
    assert dictionary.load(written) if verb == "import" else FORMATS["saelens"].read(written)


def test_what_a_killed_export_left_is_taken_over(tmp_path):
    folder, left = published(tmp_path / "mine", "topk"), tmp_path / ".out.writing"
    (left / "out").mkdir(parents=True)
    (left / "junk").write_text("junk")
    (left / ".lock").touch()
    export_dictionary(folder, "saelens", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_crosscoders_of_gemma_scope_2_read_as_their_equations_say(tmp_path):
    w = crosscoder_of_gemma_scope_2(tmp_path / "theirs", 6, 40, layers=(3, 5, 9), dtype=torch.bfloat16)
    sae = import_dictionary(
        tmp_path / "theirs", "gemma_scope_2", tmp_path / "mine", "resid_post.3,resid_post.5,resid_post.9"
    )
    assert [str(hook) for hook in sae.config.reads] == ["resid_post.3", "resid_post.5", "resid_post.9"]
    assert (
        "0 to 39, 40 to 79, 80 to 119 read one hook point each"
        in dictionary.read_card(tmp_path / "mine").imported_from.note
    )

    x = 3 * torch.randn(200, 3, 6, generator=torch.Generator().manual_seed(1))
    z = torch.einsum("nld,ldm->nlm", x, w["w_enc"]) + w["b_enc"]
    acts = z.relu() * (z > w["threshold"])
    x_hat = torch.einsum("nlm,lmod->nod", acts, w["w_dec"]) + w["b_dec"]
    code = sae.encode(x.flatten(1))
    dense = torch.zeros(200, 120).scatter_add(1, code.top_indices.long(), code.top_acts)
    assert 0.05 < (acts > 0).float().mean() < 0.6
    torch.testing.assert_close(dense, acts.flatten(1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae.decode(code).view(200, 3, 6), x_hat, atol=1e-4, rtol=1e-5)
    with pytest.raises(ConfigError, match="no foreign format holds it"):
        export_dictionary(tmp_path / "mine", "gemma_scope_2", tmp_path / "back")


@pytest.mark.parametrize(
    ("hook", "config", "error", "said"),
    [
        (None, {}, ConfigError, "Give --hook, such as resid_post.8 and the others"),
        ("resid_post.3", {}, ConfigError, "reads 2 hook points, and --hook or its name says 1"),
        ("resid_post.3,resid_post.3", {}, ConfigError, "names a hook point twice"),
        ("mlp_in.3,mlp_in.5", {"hf_hook_point_in": "a", "hf_hook_point_out": "b"}, ArtefactError, "cross-layer transcoder"),
    ],
)  # fmt: skip
def test_what_a_crosscoder_does_not_say_is_asked_for(tmp_path, hook, config, error, said):
    crosscoder_of_gemma_scope_2(tmp_path / "theirs", 6, 40, **config)
    with pytest.raises(error, match=said):
        import_dictionary(tmp_path / "theirs", "gemma_scope_2", tmp_path / "mine", hook)
    assert not (tmp_path / "mine").exists()


def test_crosscoders_with_missing_or_misfitting_parts_are_refused(tmp_path):
    folder = tmp_path / "theirs"
    crosscoder_of_gemma_scope_2(folder, 6, 40, layers=(3, 5, 9), hf_hook_point_in=["model.layers.3.output"] * 3)
    (folder / "params_layer_1.safetensors").rename(tmp_path / "away")
    with pytest.raises(ArtefactError, match="without a gap"):
        FORMATS["gemma_scope_2"].read(folder)
    (folder / "params_layer_2.safetensors").rename(folder / "params_layer_1.safetensors")
    with pytest.raises(ArtefactError, match="writes 3 hook points, and there are 2 files"):
        FORMATS["gemma_scope_2"].read(folder)
    assert origin_of(str(folder)).format == "gemma_scope_2"
