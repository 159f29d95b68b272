"""What a run is made of is known, checked and written whole: hashes, locks, leftovers, damaged files, full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import copy_run, make_tokenizer, run_here, save_model, write_config

from feature_store import writer
from feature_store.atomic import naming, read_sealed, reserve, write_sealed, writing
from feature_store.errors import JsonFileError, StoreError
from feature_store.store import Store
from sae.errors import ArtefactError, ConfigError, DataError, DiskError, LockedError
from sae.foundation.files import owned, write_folder
from sae.text.corpus import DatasetText
from sae.text.hashed_file import HashedFile
from sae.text.mixture import Mixture


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run that a test may damage."""
    copy_run(finished, tmp_path / "runs" / "tiny")
    return tmp_path / "runs" / "tiny"


def flip(path: Path, place: int = -1, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(bytes(data))


def stop_before(run: Path, *stages: str) -> None:
    """Makes a finished run one that was stopped before these stages."""
    (run / "summary.json").unlink()
    for name in stages:
        for path in run.glob(f"dictionaries/*/{name}"):
            path.unlink()


# --- one owner -----------------------------------------------------------------------------------------------------


def test_a_dictionary_in_use_is_exit_73_for_every_command_that_writes_it(copied):
    folder = copied / "dictionaries" / "first"
    before = (folder / "store" / "current.json").read_bytes()
    config = copied / "config.yaml"
    with owned(folder):
        for command in (
            ["interpret", folder, "--features", "0-3"],
            ["eval", folder, "--measures", "decoder"],
            ["concept", "add", folder, "--name", "x", "--labelled", labelled(copied)],
        ):
            done = run_here(*command)
            assert done.returncode == 73 and f"process {os.getpid()}" in done.stderr, done.stderr
        stop_before(copied, "labels.json")
        met = run_here("train", config, "--set", f"runs_dir={copied.parent}")
        assert met.returncode == 73 and str(folder) in met.stderr
    assert (folder / "store" / "current.json").read_bytes() == before
    again = run_here("train", config, "--set", f"runs_dir={copied.parent}")  # the run that met it goes on
    assert again.returncode == 0, again.stderr
    assert not (folder / ".owner").exists()


def labelled(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    rows = [{"text": f"cat {n} {'sat' if n % 2 else 'ran'} on a mat", "label": bool(n % 2)} for n in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path):
        raise ZeroDivisionError
    with owned(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()}"), owned(tmp_path):
        pass


def test_what_a_killed_owner_was_writing_is_removed_by_the_next(tmp_path):
    from sae.foundation.files import temporary_of

    for name in (".seconds.writing.json", ".tensors.writing", "metrics.json"):
        (tmp_path / name).write_text("{")
    exported = temporary_of(tmp_path / "exported")  # of a command that does not own this folder
    exported.mkdir()
    with owned(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} - {".lock", ".owner"} == {"metrics.json", exported.name}


def test_generations_that_nothing_points_to_are_reported_and_removed(copied):
    store = copied / "dictionaries" / "first" / "store"
    there = {path.name for path in store.iterdir()}
    for name in ("explanations-0123456789abcdef.duckdb", "contexts.building", "contexts.building.wal"):
        (store / name).write_bytes(b"left")
    (store / "people.sqlite").write_bytes(b"not ours to remove")
    done = run_here("interpret", copied / "dictionaries" / "first", "--features", "0-1")
    assert done.returncode == 0 and "explanations-0123456789abcdef.duckdb: left by a run" in done.stderr
    left = {path.name for path in store.iterdir()} - {"people.sqlite"}
    assert len(left) == len(there) and (store / "people.sqlite").exists()


@pytest.mark.parametrize("kind", ["contexts", "explanations"])
def test_equal_rows_are_equal_bytes_and_equal_names(tmp_path, kind):
    n = np.arange(3000)
    texts = [b"t%d" % i * (i % 90) for i in n]
    tables: dict[str, tuple[str, dict]] = {
        "contexts": ("token", {"token": n, "text": texts, "n_explain": n, "n_test": n}),
        "explanations": ("concept", {
            "concept": n, "parent": [i if i % 3 else None for i in n.tolist()], "name": [t.decode() for t in texts],
            "coverage": n / 7, "purity": n / 9, "features": texts,
        }),
    }  # fmt: skip
    names = []
    for number in range(2):
        built = writer.GenerationWriter(tmp_path / str(number), kind)
        built.meta({"n": 1})
        built.insert(*tables[kind])
        names.append(built.publish(with_pages=False))  # of rows without features
    assert names[0] == names[1] and (tmp_path / "0" / names[0]).read_bytes() == (tmp_path / "1" / names[1]).read_bytes()


# --- what a run is made of ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train/ids.bin", "train/documents.bin", "train/documents.txt", "held_out/ids.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_tokens_are_refused_by_name_and_left_as_they_are(copied, name, damage):
    path = copied / "tokens" / name
    if damage == "flip":
        flip(path, 40, 64)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    damaged = path.read_bytes() if path.exists() else None
    metrics = (copied / "dictionaries" / "first" / "metrics.json").read_bytes()
    done = run_here("eval", copied, "--measures", "reconstruction")
    assert done.returncode == 66 and name in done.stderr, done.stderr
    assert damaged is None or path.read_bytes() == damaged
    assert (copied / "dictionaries" / "first" / "metrics.json").read_bytes() == metrics


def test_tokens_outside_the_tables_are_refused_before_compiled_code_reads_them():
    from feature_store.indexing.codes import codes_of_rows
    from feature_store.indexing.generation import corpus_of

    ids = np.zeros((8, 16), np.uint16)
    acts = np.ones((8, 16, 1), np.float32)
    codes = codes_of_rows(ids, np.zeros((8, 16), np.uint32), np.zeros((8, 16, 1), np.uint16), acts)
    for field, number, said in (("documents", 1 << 30, "document 1073741824"), ("ids", 60_000, "token 60000")):
        damaged = getattr(codes, field).copy()
        damaged[3, 5] = number
        with pytest.raises(StoreError, match=f"{said} in the text"):
            corpus_of(
                codes._replace(**{field: damaged}), [b"a", b"b"], ["document"], document_keys=np.zeros(1, np.uint64)
            )


def test_another_model_is_refused_with_both_hashes(tmp_path, copied, tree, tiny_model):
    from sae.model.model_folder import folder_sha256

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    text = (copied / "config.yaml").read_text().replace(str(tiny_model), str(model))
    (copied / "config.yaml").write_text(text)
    assert run_here("eval", copied, "--measures", "decoder").returncode == 0
    metrics = (copied / "dictionaries" / "first" / "metrics.json").read_bytes()

    begun_with = folder_sha256(model)
    flip(model / "model.safetensors", -5)
    for command in (
        ["eval", copied, "--measures", "decoder"],
        ["interpret", copied, "--features", "0-1", "--scorers", "intervention"],
        ["concept", "add", copied / "dictionaries" / "first", "--name", "x", "--labelled", labelled(tmp_path)],
    ):
        done = run_here(*command)
        assert done.returncode == 66 and begun_with in done.stderr and folder_sha256(model) in done.stderr, done.stderr
    (copied / "model.json").unlink()  # a run of an earlier version: the card knows too
    done = run_here("eval", copied, "--measures", "decoder")
    assert done.returncode == 66 and "was trained on" in done.stderr and begun_with in done.stderr
    assert (copied / "dictionaries" / "first" / "metrics.json").read_bytes() == metrics


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "chat_template.jinja"])
def test_every_file_that_is_loaded_is_in_the_hash_of_a_model(tmp_path, name):
    from sae.model.model_folder import folder_sha256

    folder = save_model(tmp_path / "model")
    (folder / name).write_bytes(b"one")
    one = folder_sha256(folder)
    (folder / name).write_bytes(b"two")
    assert folder_sha256(folder) != one


def source(path: Path) -> DatasetText:
    return DatasetText(source="datasets", path="json", data_files=(str(path),))


@pytest.mark.parametrize("change", ["order", "words", "shorter", "longer"])
def test_a_text_that_changed_since_it_was_read_is_refused(tmp_path, change):
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"text": f"text {n}"}) + "\n" for n in range(20)]
    path.write_text("".join(rows))
    tokenizer = make_tokenizer(tmp_path)
    mixture = Mixture((source(path),), tokenizer, lambda _: True)
    for _ in range(8):
        mixture.next_document()
    changed = {
        "order": [*rows[:3], rows[4], rows[3], *rows[5:]],
        "words": [*rows[:7], json.dumps({"text": "text seven"}) + "\n", *rows[8:]],
        "shorter": rows[:5],
        "longer": [*rows, rows[0]],
    }[change]
    path.write_text("".join(changed))
    read = {"n_read": mixture.n_read, "tokens": mixture.tokens, "sha256": mixture.sha256}
    resumed = Mixture((source(path),), tokenizer, lambda _: True, **read)
    if change == "longer":  # after what was read: the same documents, and more of them
        assert resumed.next_document().text == "text 8"
        return
    with pytest.raises(DataError, match=r"text\.sources\.0: not the text that this run was begun with") as caught:
        resumed.next_document()
    assert mixture.sha256[0] in str(caught.value)


def test_a_hashed_file_goes_on_where_it_was_committed(tmp_path):
    path = tmp_path / "ids.bin"
    first = HashedFile(path, 0, None)
    first.write(b"abc")
    digest = first.commit()
    first.write(b"never committed")
    first.close()
    second = HashedFile(path, 3, digest)
    second.write(b"def")
    assert second.commit() != digest
    second.close()
    assert path.read_bytes() == b"abcdef"
    with pytest.raises(ArtefactError, match="6 of its 9 bytes"):
        HashedFile(path, 9, None)
    flip(path, 1)
    with pytest.raises(ArtefactError, match=digest):
        HashedFile(path, 3, digest)
    assert path.stat().st_size == 6


# --- damaged files ------------------------------------------------------------------------------------------------


EVALUATED_AGAIN = ("report.md",)
DAMAGED = {
    "config.yaml": (), "summary.json": (), "seconds.json": (), "model.json": EVALUATED_AGAIN,
    "dtype.json": EVALUATED_AGAIN, "tokens/position.json": EVALUATED_AGAIN,
    "activations/resid_post.1.json": EVALUATED_AGAIN, "dictionaries/first/card.json": EVALUATED_AGAIN,
    "dictionaries/first/metrics.json": (), "dictionaries/first/labels.json": (),
    "dictionaries/first/store/current.json": ("labels.json",), "training-first.jsonl": EVALUATED_AGAIN,
}  # fmt: skip
SEALED = ("model.json", "tokens/position.json", "activations/resid_post.1.json")
MAY_BE_EMPTY = "training-first.jsonl"


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, "cut") for name in DAMAGED]
    + [(name, "empty") for name in DAMAGED if name != MAY_BE_EMPTY]
    + [(name, "digit") for name in SEALED],
)
def test_a_damaged_file_is_exit_66_by_name(copied, name, damage):
    path = copied / name
    data = path.read_bytes()
    if name not in ("summary.json", "config.yaml", "seconds.json"):
        stop_before(copied, *DAMAGED[name])
    if damage == "digit":
        flip(path, next(at for at, byte in enumerate(data) if chr(byte).isdigit()))
    else:
        path.write_bytes(data[: len(data) // 3] if damage == "cut" else b"")
    done = run_here("train", write_back(copied, name, data))
    assert done.returncode == 66 and path.name in done.stderr and "Traceback" not in done.stderr, done.stderr


def write_back(run: Path, damaged: str, data: bytes) -> Path:
    """A config file with the settings that the run was begun with."""
    path = run.parent.parent / "config.yaml"
    path.write_bytes(data if damaged == "config.yaml" else (run / "config.yaml").read_bytes())
    text = path.read_text().splitlines(True)
    path.write_text("".join(line for line in text if not line.startswith("runs_dir")) + f"runs_dir: {run.parent}\n")
    return path


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_damaged_block_is_found_when_the_store_is_opened(copied, place):
    store = copied / "dictionaries" / "first" / "store"
    Store(store).close()
    path = next(store.glob("contexts-*.duckdb"))
    flip(path, int(place * path.stat().st_size))
    with pytest.raises(StoreError, match=r"SHA-256 is [0-9a-f]{64}, it was published with [0-9a-f]{64}"):
        Store(store)
    done = run_here("interpret", copied / "dictionaries" / "first", "--features", "0-1")
    assert done.returncode == 66 and path.name in done.stderr
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        Store(store)


@pytest.mark.parametrize("pointer", ["[]", '{"contexts": {"file": "../../x.duckdb", "sha256": ""}}', '{"a": 1}'])
def test_a_pointer_names_generations_and_nothing_else(tmp_path, pointer):
    (tmp_path / "current.json").write_text(pointer)
    with pytest.raises(StoreError, match=r"current\.json"):
        Store(tmp_path)


def test_a_sealed_file_tells_that_a_digit_was_changed(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"cycle": 17, "norms": [0.1, 1e-30]})
    assert read_sealed(path) == {"cycle": 17, "norms": [0.1, 1e-30]}
    path.write_text(path.read_text().replace("17", "18"))
    with pytest.raises(JsonFileError, match=r"x\.json: SHA-256 of its values"):
        read_sealed(path)


# --- a disk that refuses ------------------------------------------------------------------------------------------


def test_a_failed_write_names_the_file_and_leaves_the_former_one(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("before")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.json"), writing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="other"), naming(path):
        raise OSError(errno.EIO, "x", "other")


def test_a_failed_folder_leaves_the_former_one_and_nothing_beside_it(tmp_path):
    from safetensors import SafetensorError

    write_folder(tmp_path / "d", lambda folder: None)

    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskError, match=f"{tmp_path}/d: I/O error: No space left"):
        write_folder(tmp_path / "d", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_reserved_bytes_are_on_the_disk(tmp_path):
    reserve(tmp_path / "codes.bin", 3_000_000)
    state = (tmp_path / "codes.bin").stat()
    assert state.st_size == 3_000_000 and state.st_blocks * 512 >= 3_000_000


def test_a_disk_error_of_duckdb_names_the_file(tmp_path, monkeypatch):
    import duckdb

    built = writer.GenerationWriter(tmp_path, "explanations")
    with pytest.raises(OSError, match=r"explanations\.building") as caught, built._writing():
        raise duckdb.IOException("IO Error: Could not write file: No space left on device\nmore")
    assert caught.value.errno == errno.ENOSPC


def test_the_first_error_is_told_and_not_one_while_cleaning_up(copied, monkeypatch):
    from sae.pipeline import run as pipeline
    from sae.pipeline.stages.evaluate import Evaluate

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "seconds.json")

    def first(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "report.md")

    stop_before(copied, "report.md")
    monkeypatch.setattr(pipeline, "write_json", full)
    monkeypatch.setattr(Evaluate, "work", first)
    done = run_here("train", write_back(copied, "", b""))
    assert done.returncode == 74 and "report.md" in done.stderr and "seconds.json" not in done.stderr


# --- signals ------------------------------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from sae.cli import main

moment, is_sent = sys.argv[1], False

def send(event, arguments):
    global is_sent
    if event == "open" and moment in str(arguments[0]) and not is_sent:
        is_sent = True
        os.kill(os.getpid(), signal.{number})

sys.addaudithook(send)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("verb", "moment", "number"),  # the signal comes when the command opens this file
    [
        ("interpret", "current.json", "SIGTERM"),
        ("interpret", "explanations.building", "SIGINT"),
        ("eval", "config.yaml", "SIGINT"),
        ("eval", ".evaluating/held_out/contexts-", "SIGTERM"),
        ("export", "weights.safetensors", "SIGINT"),
        ("export", "cfg.json", "SIGTERM"),
        ("concept", "dtype.json", "SIGTERM"),
        ("concept", ".concepts_by_example.writing.json", "SIGINT"),
    ],
)
def test_a_stopped_command_exits_75_and_leaves_no_scratch(copied, tmp_path, tmp_path_factory, verb, moment, number):
    folder, scratch = copied / "dictionaries" / "first", tmp_path / "scratch"
    scratch.mkdir()
    command = {
        "interpret": ["interpret", folder],
        "eval": ["eval", folder],
        "export": ["export", folder, "--to", "saelens", tmp_path / "exported"],
        "concept": ["concept", "add", folder, "--name", "x", "--labelled", labelled(tmp_path)],
    }[verb]
    before = set(tmp_path.rglob("*"))
    program = [sys.executable, "-c", STOPPED.format(number=number), moment, *map(str, command)]
    compiled = str(tmp_path_factory.mktemp("compiled"))  # torch's, which it keeps
    variables = {**os.environ, "TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": compiled}
    done = subprocess.run(program, capture_output=True, text=True, env=variables)
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr and "stopped" in done.stderr
    left = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert left <= {"explanations.building"}  # the next start of the same command drops it


# --- bad sizes, paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"sae__0__d_sae": 10**12}, "sae.0.d_sae"),
        ({"harvest__batch_contexts": 10**12}, "harvest.batch_contexts"),
        ({"train__tokens": 10**16}, "train.tokens"),
        ({"train__tokens": 10**14, "shuffle__buffer_bytes": 10**15}, "shuffle.buffer_bytes"),
    ],
)
def test_impossible_sizes_are_refused_before_the_text_is_read(tmp_path, tree, change, setting):
    done = run_here("train", write_config(tmp_path, tree, **change))
    assert done.returncode == 2 and setting in done.stderr and "GB" in done.stderr, done.stderr
    assert not (tmp_path / "runs" / "tiny" / "tokens").exists()


def test_limits_of_the_process_and_of_its_control_group_are_counted(tmp_path, monkeypatch):
    import resource

    import torch

    from sae.foundation import memory

    cpu = torch.device("cpu")
    whole = memory.memory_left(cpu)
    assert 0 < whole.n_bytes < 1 << 50
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    for _, controllers, name in groups:
        if controllers in ("", "memory"):
            root = tmp_path / "memory" if controllers else tmp_path
            folder = root / name.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ("memory.limit_in_bytes" if controllers else "memory.max")).write_text(f"{5 << 40}\n")
            root.joinpath("memory.limit_in_bytes" if controllers else "memory.max").write_text("1048576\n")
    assert memory.memory_left(cpu) == (0, "left of the control group's limit")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "nowhere")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert memory.memory_left(cpu) == (0, "left of ulimit -v")


def test_relative_paths_mean_the_same_from_every_folder(tmp_path, tree, tiny_model, text_file, monkeypatch):
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    begun.mkdir(), elsewhere.mkdir()
    shutil.copytree(tiny_model, begun / "model")
    shutil.copy(text_file, begun / "text.jsonl")
    monkeypatch.chdir(begun)
    config = write_config(
        tmp_path, tree, model__path="model", text__sources__0__data_files=["text.jsonl"],
        train__tokens=2000, train__warmup_tokens=100, index__build=False,
    )  # fmt: skip
    assert run_here("train", config).returncode == 0
    monkeypatch.chdir(elsewhere)
    done = run_here("eval", tmp_path / "runs" / "tiny", "--measures", "decoder")
    assert done.returncode == 0, done.stderr
    missing = run_here("train", write_config(tmp_path, tree, name="other", model__path="model"))
    assert missing.returncode == 66 and str(elsewhere / "model") in missing.stderr
    shutil.copytree(tiny_model, elsewhere / "home" / "model")
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    from sae.model.language_model import FolderModel, locate

    assert locate(FolderModel(source="folder", path=Path("~/model"))).folder == elsewhere / "home" / "model"


def test_a_run_that_was_moved_with_its_model_and_text_goes_on(tmp_path, tree, tiny_model, text_file, monkeypatch):
    begun, moved = tmp_path / "begun", tmp_path / "moved"
    begun.mkdir()
    shutil.copytree(tiny_model, begun / "model")
    shutil.copy(text_file, begun / "text.jsonl")
    small = {"train__tokens": 2000, "train__warmup_tokens": 100, "index__build": False}
    here = {"model__path": "model", "text__sources__0__data_files": ["text.jsonl"]}
    config = write_config(begun, tree, **here, **small)
    config.write_text(config.read_text().replace(str(begun / "runs"), "runs"))
    monkeypatch.chdir(begun)
    assert run_here("train", "config.yaml").returncode == 0
    begun.rename(moved)
    monkeypatch.chdir(moved)
    stop_before(moved / "runs" / "tiny", "report.md")
    done = run_here("train", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert run_here("eval", "runs/tiny", "--measures", "decoder").returncode == 0
    flip(moved / "model" / "model.safetensors", -5)
    stop_before(moved / "runs" / "tiny", "report.md")
    assert run_here("train", "config.yaml").returncode == 66


def test_the_hash_of_a_config_does_not_say_where_it_ran(tmp_path, tree):
    from sae.pipeline.config import load_config

    config = load_config(write_config(tmp_path, tree))
    assert config.model_copy(update={"runs_dir": Path("/elsewhere")}).sha256() == config.sha256()
    assert config.model_copy(update={"seed": 1}).sha256() != config.sha256()
    with pytest.raises(ConfigError, match=r"no config\.yaml of a run"):
        from sae.pipeline.config import config_of_run

        config_of_run(tmp_path / "nowhere", "")


def test_a_dictionary_that_never_fires_is_dead_and_the_others_go_on(tmp_path, tree):
    silent = {"name": "silent", "architecture": "jumprelu", "hook": "resid_post.1", "d_sae": 16, "target_l0": 4}
    silent["initial_threshold"] = 1e9
    small = {"train__tokens": 3000, "train__warmup_tokens": 500}
    done = run_here("train", write_config(tmp_path, tree, sae=[silent, tree["sae"][0]], **small))
    assert done.returncode == 0, done.stderr
    assert "silent is dead: no latent fires" in done.stderr
    folders = tmp_path / "runs" / "tiny" / "dictionaries"
    metrics = json.loads((folders / "silent" / "metrics.json").read_text())
    assert metrics["l0"] == 0 and metrics["dead"] == metrics["d_sae"] == 16
    assert json.loads((folders / "silent" / "labels.json").read_text())["features_alive"] == 0
    assert json.loads((folders / "first" / "labels.json").read_text())["features_labelled"] > 0
    assert Store(folders / "silent" / "store").meta["n_tokens"] > 0


def test_sums_do_not_depend_on_the_number_of_threads():
    import torch

    from sae.foundation.metrics import batch_sums

    x = torch.randn(16_384, 64, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        sums = []
        for n_threads in (1, 2, 4):
            torch.set_num_threads(n_threads)
            sums.append([part.tolist() for part in batch_sums(x, x / 3)])
    finally:
        torch.set_num_threads(before)
    assert sums[0] == sums[1] == sums[2]


def test_damaged_answers_of_a_judge_are_refused_by_name(tmp_path):
    from sae.interpret.judging.answer_cache import AnswerCache

    path = tmp_path / "judge_answers.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ArtefactError, match=r"judge_answers\.sqlite: .*Remove it"):
        AnswerCache(path)
