"""Ratios of the CPU kernels to their plain definition, on this machine, in one run: `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sae.kernels import cpu, reference

TOKENS, D_MODEL, D_SAE, K, ROUNDS = 1024, 576, 4096, 32, 7


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of a call after two warm ones."""
    times = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[ROUNDS // 2] * 1e3


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    rows, table, weights = torch.randn(TOKENS, D_MODEL), torch.randn(D_SAE, D_MODEL), torch.rand(TOKENS, K)
    pre_acts = torch.randn(TOKENS, D_SAE)
    indices = cpu.top_k_indices(pre_acts, K)
    calls = {
        "gather_dot": (rows, table, indices),
        "gather_sum": (weights, table, indices),
        "scatter_rows": (weights, rows, indices, D_SAE),
        "top_k_indices": (pre_acts, K),
    }
    print(
        f"{TOKENS} tokens, d_model {D_MODEL}, d_sae {D_SAE}, k {K}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'kernel':<16}{'plain ms':>10}{'ours ms':>10}{'ratio':>8}")
    for name, arguments in calls.items():
        plain = milliseconds(lambda name=name, a=arguments: getattr(reference, name)(*a))
        ours = milliseconds(lambda name=name, a=arguments: getattr(cpu, name)(*a))
        print(f"{name:<16}{plain:>10.2f}{ours:>10.2f}{plain / ours:>8.1f}")
    for dtype in (torch.float32, torch.bfloat16):
        a, b = rows.to(dtype), table.T.to(dtype)
        print(f"pre-activations in {dtype}: {milliseconds(lambda a=a, b=b: a @ b):.2f} ms")


if __name__ == "__main__":
    main()
