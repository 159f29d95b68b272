"""Cards and foreign files with anything in them: read, or refused with one clear error, and nothing is left behind."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import releases
import torch
from fixtures import published, run_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from feature_store.dictionary_files import CARD_SHA256, DictionaryCard, _content_sha256
from sae.errors import ArtefactError, ConfigError, SaedexError
from sae.foundation.visible import visible
from sae.interop import foreign_files
from sae.interop.transfer import export_dictionary, import_dictionary
from sae.publish import dictionary

MANY = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SINGLE = [
    ("qwen_scope", releases.qwen, "layer14.sae.pt"),
    ("goodfire", releases.goodfire, "Llama-3.1-8B-Instruct-SAE-l19.pth"),
    ("transcoder_layer", releases.mwhanna, "layer_14.safetensors"),
]
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 300) | st.sampled_from([2**31, 2**63, 10**30, -(10**19)]) | st.floats()
    | st.text(max_size=4) | st.sampled_from(["topk", "../x", "/etc", "\x1b]0;x\x07", "float32", "resid_post.1", "x" * 5000])
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3))
DEEP = "[" * 900 + "]" * 900


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, part in inner for p in places(part, (*path, key)))][1 if not path else 0 :]


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """A JSON object of which some entries are others, gone, or new."""
    result = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(result)))
        node = result
        for key in path:
            node = node[key]
        action = draw(st.sampled_from(["other", "other", "gone", "new", "deep"]))
        if action == "gone":
            del node[last]
        elif action == "new" and isinstance(node, dict):
            node[draw(st.text(max_size=5))] = draw(VALUES)
        else:
            node[last] = "DEEP" if action == "deep" else draw(VALUES)
        if not places(result):
            break
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Dictionaries of all kinds, in our folders and in every foreign format."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("topk", "gated", "jumprelu", "relu", "crosscoder", "transcoder"):
        published(folder / name, name)
    for form in ("saelens", "dictionary_learning", "sparsify", "gemma_npz"):
        export_dictionary(folder / ("jumprelu" if form == "gemma_npz" else "topk"), form, folder / form)
    export_dictionary(folder / "gated", "saelens", folder / "saelens-gated")
    export_dictionary(folder / "jumprelu", "gemma_scope_2", folder / "gemma_scope_2")
    releases.llama_scope(folder, "llama_scope", "Llama3_1-8B-Base-L15R-8x").rename(folder / "llama")
    (folder / "llama_scope").rmdir()
    (folder / "llama").rename(folder / "llama_scope")
    releases.llamascopium(folder, "ll", "x").rename(folder / "llamascopium")
    for form, write, file in SINGLE:
        write(folder, form, file)
    return folder


@MANY
@given(st.data(), st.sampled_from(["topk", "gated", "jumprelu", "crosscoder", "transcoder"]), st.booleans())
def test_every_card_is_read_or_refused(place, data, name, sealed):
    shutil.copytree(place / name, place / "card", dirs_exist_ok=True)
    content = json.loads((place / name / "card.json").read_text())
    del content[CARD_SHA256]
    content = data.draw(mutated(content))
    text = json.dumps({**content, CARD_SHA256: _content_sha256(content)} if sealed else content)
    (place / "card" / "card.json").write_text(text.replace('"DEEP"', DEEP))
    try:
        sae = dictionary.load(place / "card")
    except ArtefactError as error:
        assert len(str(error)) < 20_000
    else:
        assert torch.isfinite(sae.W_dec).all()


def attempt(path: Path, form: str, hooks: dict[str, Any]) -> None:
    target = path.parent / "new"
    shutil.rmtree(target, ignore_errors=True)
    try:
        import_dictionary(path, form, target, hooks["hook"], writes=hooks["writes"])
        assert torch.isfinite(dictionary.load(target).W_dec).all()
    except (ArtefactError, ConfigError):
        assert not target.exists()


FOLDERS = st.sampled_from([
    "saelens", "saelens-gated", "dictionary_learning", "sparsify", "gemma_scope_2", "llama_scope", "llamascopium"
])  # fmt: skip
HOOKS = st.sampled_from([
    {"hook": None, "writes": None}, {"hook": "resid_post.1", "writes": None}, {"hook": "mlp_in.1", "writes": "mlp_out.1"},
])  # fmt: skip


@MANY
@given(st.data(), FOLDERS, HOOKS)
def test_every_foreign_config_is_read_or_refused(place, data, name, hooks):
    shutil.copytree(place / name, place / "foreign", dirs_exist_ok=True)
    (config,) = (place / name).glob("*.json")
    text = json.dumps(data.draw(mutated(json.loads(config.read_text()))))
    (place / "foreign" / config.name).write_text(text.replace('"DEEP"', DEEP))
    attempt(place / "foreign", name.partition("-")[0], hooks)
    shutil.rmtree(place / "foreign")


WHOLE = [torch.zeros(3, dtype=torch.int64), torch.tensor(7), torch.tensor(True)]
SHAPES = [(), (0,), (1,), (48,), (12,), (12, 48), (48, 12), (0, 48), (48, 0), (2, 3, 4), (12, 0)]
TENSORS = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from(SHAPES).map(lambda shape: torch.full(shape, 0.5)),
    st.sampled_from([float("nan"), float("inf")]).map(lambda value: torch.full((48,), value)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.complex64]).map(
        lambda dtype: torch.ones(48, 12, dtype=dtype)
    ),
)
ODD = st.sampled_from([
    torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(1).expand(1 << 40), torch.ones(2, 2).to_sparse(),
    torch.empty(12, 48, device="meta"), "text", None, 3, -1.5, [1], {"k": 4},
])  # fmt: skip


def changed_tensors(draw: Any, tensors: dict[str, Any], values: Any) -> dict[str, Any]:
    tensors = dict(tensors)
    name = draw(st.sampled_from(sorted(tensors)))
    action = draw(st.sampled_from(["other", "gone", "new"]))
    if action == "gone":
        del tensors[name]
    else:
        tensors["new" if action == "new" else name] = draw(values)
    return tensors


@MANY
@given(st.data(), FOLDERS | st.sampled_from(["gemma_npz", "openai"]), HOOKS)
def test_every_set_of_foreign_tensors_is_read_or_refused(place, data, name, hooks):
    path = place / "tensors"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    if name == "openai":
        tensors: Any = {
            "pre_bias": torch.randn(12), "latent_bias": torch.randn(48), "encoder.weight": torch.randn(48, 12),
            "decoder.weight": torch.randn(12, 48), "activation": "TopK", "activation_state_dict": {"k": 4},
        }  # fmt: skip
        torch.save(changed_tensors(data.draw, tensors, TENSORS | ODD), path / "sae.pt")
        return attempt(path / "sae.pt", name, hooks)

    shutil.copytree(place / name, path, dirs_exist_ok=True)
    if name == "gemma_npz":
        with np.load(path / "params.npz") as arrays:
            tensors = dict(arrays)
        odd = TENSORS.filter(lambda t: t.dtype != torch.bfloat16).map(lambda t: t.numpy())
        np.savez(path / "params.npz", **changed_tensors(data.draw, tensors, odd | st.just(np.array(["x"]))))
    elif name == "dictionary_learning":
        torch.save(changed_tensors(data.draw, torch.load(path / "ae.pt"), TENSORS | ODD), path / "ae.pt")
    else:
        (file,) = path.rglob("*.safetensors")
        save_file(changed_tensors(data.draw, load_file(file), TENSORS), file)
    return attempt(path, name.partition("-")[0], hooks)


@MANY
@given(st.data(), st.sampled_from(SINGLE), HOOKS, st.booleans())
def test_every_single_file_is_read_or_refused(place, data, single, hooks, damaged):
    name, _, file_name = single
    path = place / "single"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place / name, path)
    file = path / file_name
    if damaged:
        content = bytearray(file.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            content[at] ^= 1 << (at % 8)
        file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    elif file.suffix == ".safetensors":
        save_file(changed_tensors(data.draw, load_file(file), TENSORS), file)
    else:
        torch.save(changed_tensors(data.draw, torch.load(file), TENSORS | ODD), file)
    return attempt(file, name, hooks)


@MANY
@given(st.data(), FOLDERS | st.just("gemma_npz"), st.integers(0, 2**32 - 1))
def test_every_damaged_file_is_read_or_refused(place, data, name, seed):
    path, rng = place / "damaged", np.random.default_rng(seed)
    shutil.copytree(place / name, path, dirs_exist_ok=True)
    file = data.draw(st.sampled_from(sorted(path.rglob("*.*"))))
    content = bytearray(file.read_bytes())
    how = data.draw(st.sampled_from(["bits", "header", "cut", "empty", "junk"]))
    if how in ("bits", "header"):
        for _ in range(8):  # headers stand at the beginning or at the end
            at = int(rng.integers(min(len(content), 300))) * (1 if rng.random() < 0.5 else -1)
            content[at if how == "header" else int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    else:
        content = {"cut": content[: int(rng.integers(len(content)))], "empty": b"", "junk": rng.bytes(500)}[how]
    file.write_bytes(bytes(content))
    attempt(path, name.partition("-")[0], {"hook": "resid_post.1", "writes": None})
    shutil.rmtree(path)


def test_what_unpacks_to_far_more_is_refused_by_its_headers(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20,)}
                )
                file.write(bytes(4 << 20))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ArtefactError, match=r"bytes unpack to 20,9.* Nothing was unpacked"):
        foreign_files.read_arrays(tmp_path / "params.npz")

    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in stored.namelist():
            packed.writestr(member, stored.read(member))
    with pytest.raises(ArtefactError, match="Nothing was unpacked"):
        foreign_files.read_tensors(tmp_path / "packed.pt")


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(1099511627776, 1099511627776)", "(-1,)", "(3.5,)", "'x'"])
def test_arrays_that_say_another_size_than_they_have_are_refused(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr(
            "W_enc.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
        )
    with pytest.raises(ArtefactError, match=r"params.npz"):
        foreign_files.read_arrays(tmp_path / "params.npz")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_pickle_is_run_whatever_it_is_called(tmp_path, capsys):
    for name in ("a.pt", "b.safetensors", "c.npz", "d.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        for read in (foreign_files.read_tensors, foreign_files.read_arrays, foreign_files.read_json):
            with pytest.raises(ArtefactError):
                read(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_nothing_in_the_source_loads_pickles():
    root = Path(__file__).parent.parent
    for path in (p for folder in ("sae", "server", "feature_store") for p in (root / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not imports & {"cPickle", "dill", "joblib", "marshal", "shelve"}, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert not name.startswith("pickle."), path
            assert name != "torch.load" or options.get("weights_only") == "True", path
            assert options.get("allow_pickle", "False") == "False" and "trust_remote_code" not in options, path


HIDDEN = "\x1b]0;title\x07 \x9b31m \x7f \u2028 \u2029 \u202e \u2066 \u061c \u200b \ufeff \U000e0041 \ud800 \r"


def test_what_an_error_prints_commands_no_terminal_and_hides_nothing(tmp_path):
    assert visible("plain ünïcödé 漢字 🙂\n\ttext") == "plain ünïcödé 漢字 🙂\n\ttext"
    shown = r"\x1b]0;title\x07 \x9b31m \x7f \u2028 \u2029 \u202e \u2066 \u061c \u200b \ufeff \U000e0041 \ud800 \r"
    assert visible(HIDDEN) == shown

    published(tmp_path / "x", "topk")
    card = json.loads((tmp_path / "x" / "card.json").read_text())
    (tmp_path / "x" / "card.json").write_text(json.dumps({**card, CARD_SHA256: HIDDEN}))
    save_file({HIDDEN.encode(errors="replace").decode(): torch.zeros(2)}, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text('{"activation": "topk"}')
    for command in (
        ("export", tmp_path / "x", "--to", "saelens", tmp_path / "y"),
        ("import", tmp_path, "--from", "sparsify", tmp_path / "z"),
    ):
        done = run_here(*command)
        assert done.returncode == 66 and r"\u202e" in done.stderr and visible(done.stderr) == done.stderr

    (tmp_path / "x" / "card.json").write_text(json.dumps({**card, CARD_SHA256: "x" * 1_000_000}))
    done = run_here("export", tmp_path / "x", "--to", "saelens", tmp_path / "y")
    assert done.returncode == 66 and len(done.stderr) < 11_000 and "characters" in done.stderr


@pytest.mark.parametrize(
    ("target", "change", "code", "message"),
    [
        ("My SAE v2", {}, 2, "allowed are up to 64 of the letters a-z, digits"),
        ("Über", {}, 2, "'Über' cannot be its name"),
        ("x" * 65, {}, 2, "cannot be its name"),
        ("good", {"k": 512}, 66, "k is 512, allowed is 1..48"),
        ("good", {"k": "8"}, 66, "k is '8', allowed is 1..48"),
        ("good", {"k": None}, 66, "the file has no k"),
        ("good", {"new": 1}, 66, "saedex does not know what new does"),
        ("good", {"signed": True}, 66, "signed is True; saedex reads False"),
    ],
)
def test_what_is_wrong_with_an_import_is_said_in_a_line(place, tmp_path, target, change, code, message):
    shutil.copytree(place / "sparsify", tmp_path / "layers.2")
    config = json.loads((tmp_path / "layers.2" / "cfg.json").read_text())
    (tmp_path / "layers.2" / "cfg.json").write_text(json.dumps({**config, **change}))
    done = run_here("import", tmp_path / "layers.2", "--from", "sparsify", tmp_path / target)
    assert done.returncode == code and message in done.stderr and "validation error" not in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / target).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hook", "nowhere.3"), "--hook nowhere.3: a hook point is site.layer"),
        (("--hook", "mlp_in.1", "--target", "x"), "--target x: a hook point is site.layer"),
        (("--hook", "mlp_in.1", "--target", "mlp_in.1"), "are both mlp_in.1"),
        ((), "The file says 'foreign', which is no hook point that saedex knows for certain. Give --hook"),
    ],
)
def test_hook_points_are_asked_for_and_not_guessed(place, tmp_path, arguments, message):
    shutil.copytree(place / "sparsify", tmp_path / "foreign")
    done = run_here("import", tmp_path / "foreign", "--from", "sparsify", tmp_path / "y", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_dictionary_learning_says_its_hook_points_in_several_words(place, tmp_path):
    shutil.copytree(place / "dictionary_learning", tmp_path / "dl")
    config = json.loads((tmp_path / "dl" / "config.json").read_text())
    for number, (name, layer, hook) in enumerate(
        [("resid_post", 3, "resid_post.3"), ("resid_post_layer_4", 4, "resid_post.4"), ("resid_pre_layer_2", None, "resid_pre.2"),
         ("resid_post_layer_2", 3, None), ("resid_post", None, None), (None, 3, None), ("mlp_out", 3, None), ("resid_post", "3", "resid_post.3")]
    ):  # fmt: skip
        config["trainer"] |= {"trainer_class": "TopKTrainer", "submodule_name": name, "layer": layer}
        (tmp_path / "dl" / "config.json").write_text(json.dumps(config))
        if hook:
            back = import_dictionary(tmp_path / "dl", "dictionary_learning", tmp_path / str(number), None)
            assert str(back.config.hook) == hook
            continue
        with pytest.raises(SaedexError, match="Give --hook"):
            import_dictionary(tmp_path / "dl", "dictionary_learning", tmp_path / str(number), None)


def test_cards_of_the_first_format_are_read(tmp_path):
    folder = published(tmp_path / "x", "topk")
    card = json.loads((folder / "card.json").read_text())
    old = {"card_version": 1, **{k: v for k, v in card.items() if k not in (CARD_SHA256, "format_version", "d_out")}}
    (folder / "card.json").write_text(json.dumps(old))
    assert DictionaryCard.read(folder).d_out == 12 and dictionary.load(folder).config.k == 5
