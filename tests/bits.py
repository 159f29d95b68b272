"""The exact bits of a small run of every architecture, as hashes: what a change of the code's form must not move.

    python -m tests.bits > tests/golden/bits.json

writes them anew, with the machine that they hold for: sums in another order (another processor, another torch) differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import torch
from safetensors.torch import load_file

SHARED = {"d_sae": 64, "k_aux": 16, "dead_after_tokens": 3000}
KEEPS_K = {**SHARED, "k": 4}
SAES = [
    {"name": "topk", "architecture": "topk", "hook": "resid_post.1", "multi_topk": True, **KEEPS_K},
    {"name": "batch-topk", "architecture": "batch_topk", "hook": "resid_post.1", "token_norm": True, **KEEPS_K},
    {"name": "matryoshka", "architecture": "matryoshka", "hook": "resid_post.1", **KEEPS_K},
    {"name": "top-afa", "architecture": "top_afa", "hook": "resid_post.1", **SHARED},
    {"name": "gradient", "architecture": "gradient", "hook": "resid_post.1", **KEEPS_K},
    {"name": "jumprelu", "architecture": "jumprelu", "hook": "resid_post.1", "target_l0": 4, **SHARED},
    {"name": "gated", "architecture": "gated", "hook": "resid_post.1", **SHARED},
    {"name": "relu", "architecture": "relu", "hook": "resid_post.1", **SHARED},
    {
        "name": "transcoder",
        "architecture": "transcoder",
        "hook": "mlp_in.1",
        "target": "mlp_out.1",
        "skip": True,
        **KEEPS_K,
    },
    {
        "name": "crosscoder",
        "architecture": "crosscoder",
        "hook": "resid_post.0",
        "more_hooks": ["resid_post.1"],
        **KEEPS_K,
    },
    {"name": "matching-pursuit", "architecture": "matching_pursuit", "hook": "resid_post.1", **KEEPS_K},
    {"name": "heads", "architecture": "topk", "hook": "attn_z.1", **KEEPS_K},
]
THREADS = 2
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(THREADS), "NUMBA_NUM_THREADS": str(THREADS)}
FIGURES = ("fvu", "l0", "ce_increase", "dead")
NOT_A_RESULT = {"format_version", "card_version", "created", "versions", "seconds", "config_sha256"}


def machine() -> dict[str, Any]:
    """What the order of sums depends on."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")
    ]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "torch": torch.__version__,
        "threads": THREADS,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _json(path: Path) -> str:
    value = json.loads(path.read_text(encoding="utf-8"))
    return _sha256(json.dumps({k: v for k, v in value.items() if k not in NOT_A_RESULT}, sort_keys=True).encode())


def digests(dictionary: Path) -> dict[str, str]:
    """Hashes of every tensor, file of figures and table of a published dictionary."""
    bits = {
        f"weights {name}": _sha256(
            tensor.contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.ndim
            else bytes(str(float(tensor)), "ascii")
        )
        for name, tensor in load_file(dictionary / "weights.safetensors").items()
    }
    bits |= {name: _json(dictionary / name) for name in ("metrics.json", "labels.json", "concepts.json")}
    bits["training.jsonl"] = _sha256((dictionary / "training.jsonl").read_bytes())

    published = json.loads((dictionary / "store" / "current.json").read_text())
    for kind in ("contexts", "explanations"):
        connection = duckdb.connect(str(dictionary / "store" / published[kind]["file"]), read_only=True)
        tables = connection.execute(
            "select table_name from duckdb_tables() where table_name != 'meta' order by all"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"select * from {table} order by all").fetchall()
            bits[f"{kind}.{table}"] = _sha256(repr(rows).encode())
        connection.close()
    return bits


def figures(dictionary: Path) -> dict[str, float]:
    """The figures that another machine is held to."""
    metrics = json.loads((dictionary / "metrics.json").read_text())
    return {name: metrics[name] for name in FIGURES if name in metrics}


def record(dictionaries: Path) -> dict[str, Any]:
    """Everything that is compared, of all dictionaries of a run."""
    folders = sorted(path.parent for path in dictionaries.glob("*/card.json"))
    return {
        "machine": machine(),
        "bits": {folder.name: digests(folder) for folder in folders},
        "figures": {folder.name: figures(folder) for folder in folders},
    }


def run_small(folder: Path, tree: dict[str, Any]) -> Path:
    """Trains every architecture on one small harvest; returns the folder of the dictionaries."""
    from fixtures import write_config

    changes = {"sae": SAES, "name": "bits", "train__dtype": "float32", "interpret__scorers": None}
    command = [sys.executable, "-m", "sae.cli", "train", str(write_config(folder, tree, **changes))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "bits" / "dictionaries"


def main() -> None:
    """Prints the record of this machine."""
    import fixtures

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, text = fixtures.save_model(folder / "model"), fixtures.save_text(folder / "documents.jsonl")
        print(json.dumps(record(run_small(folder, fixtures.small_tree(model, text))), indent=1))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
