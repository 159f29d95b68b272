"""Small real things to test on: a random model with a trained tokenizer, text, and one finished run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import shape_checks
import torch

shape_checks.install()  # before sae is imported

os.environ["HF_HUB_OFFLINE"] = "1"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "see",
    "red",
    "blue",
    "green",
    "sun",
    "moon",
    "star",
    "tree",
    "house",
    "river",
    "stone",
]


def make_tokenizer(folder: Path) -> Any:
    """A byte-level BPE tokenizer trained on a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(WORDS)] * 50, vocab_size=400, special_tokens=["<s>", "</s>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return fast


def make_text(n_documents: int, seed: int = 0) -> list[str]:
    """Documents of random sentences from a few words."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for number in range(n_documents):
        picks = torch.randint(len(WORDS), (60,), generator=generator).tolist()
        documents.append(f"story {number}: " + " ".join(WORDS[i] for i in picks))
    return documents


def save_model(folder: Path) -> Path:
    """Saves a random Llama with 3 layers of width 32 and a tokenizer; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_text(path: Path) -> Path:
    """Writes 400 documents as JSON lines; returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_text(400)))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small model."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with the small text."""
    return save_text(tmp_path_factory.mktemp("text") / "documents.jsonl")


@pytest.fixture(scope="session")
def tree(tiny_model: Path, text_file: Path) -> dict[str, Any]:
    """A complete small configuration, as YAML would give it; every test changes a copy."""
    return small_tree(tiny_model, text_file)


def small_tree(tiny_model: Path, text_file: Path) -> dict[str, Any]:
    """The configuration of a small run, as YAML would give it."""
    return {
        "name": "tiny",
        "model": {"source": "folder", "path": str(tiny_model), "dtype": "float32"},
        "text": {
            "sources": [{"source": "datasets", "path": "json", "data_files": [str(text_file)]}],
            "ctx_len": 32,
            "held_out_fraction": 0.2,
            "held_out_tokens": 1024,
        },
        "harvest": {"batch_contexts": 8},
        "shuffle": {"reuse": 2, "buffer_bytes": 500_000},
        "train": {
            "tokens": 12_000, "batch_tokens": 128, "lr": 0.003, "warmup_tokens": 1000,
            "checkpoint_tokens": 4000, "log_tokens": 1000,
        },
        "sae": [
            {"name": "first", "architecture": "topk", "hook": "resid_post.1", "d_sae": 64, "k": 4, "k_aux": 16,
             "dead_after_tokens": 3000},
        ],
        "evaluate": {"splice_tokens": 512},
    }  # fmt: skip


def write_config(folder: Path, tree: dict[str, Any], **changes: Any) -> Path:
    """A config file under `folder` with dotted changes applied; runs go to `folder`/runs."""
    import copy

    import yaml

    tree = copy.deepcopy(tree)
    tree["runs_dir"] = str(folder / "runs")
    for key, value in changes.items():
        node: Any = tree
        *path, last = key.split("__")
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run_cli(*arguments: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """`python -m sae.cli ...` in a process of its own."""
    command = [sys.executable, "-m", "sae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **more)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> Path:
    """The folder of a run that nothing stopped, to compare others with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_cli("train", write_config(folder, tree))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> Path:
    """Run folder of a finished small run with two dictionaries at two hook points."""
    folder = tmp_path_factory.mktemp("finished")
    second = {**tree["sae"][0], "name": "second", "hook": "mlp_out.2", "k": 8}
    path = write_config(folder, tree, sae=[tree["sae"][0], second], index__token_latents=True)
    done = run_cli("train", path)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """Address of a real server process over a run, for the time of the block."""
    import httpx

    port = free_port()
    command = [sys.executable, "-m", "sae.cli", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            httpx.get(f"{address}/api/v1/dictionaries").raise_for_status()
            break
        except httpx.HTTPError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
    yield address
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture(scope="session")
def server(finished: Path) -> Iterator[str]:
    """Address of a real server process over the finished run."""
    with serving(finished) as address:
        yield address


def chromium() -> str | None:
    """Path of a Chromium, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says loudly when no browser looked at the explorer."""
    if chromium() is None:
        terminalreporter.write_line(
            "*** BROWSER TESTS DID NOT RUN: no Chromium on this machine ***", red=True, bold=True
        )
