"""What tests/test_distributed.py runs under torchrun: updates of several processes beside those of one on the same rows."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from feature_store.dictionary_files import Provenance
from sae.architectures import ARCHITECTURES
from sae.foundation.distributed import Processes, connected, exit_process
from sae.foundation.screen import Progress
from sae.foundation.tensor_files import Piece, tensors_to_write
from sae.model.hookpoints import Channel, HookPoint
from sae.publish import dictionary
from sae.stream.activations import ActivationStatistics
from sae.training import checkpoint
from sae.training.exchange import LatentShards, Replicas
from sae.training.optimiser import TrainConfig
from sae.training.trainer import SaeTrainer

HOOK, OTHER = HookPoint("resid_post", 0), HookPoint("mlp_out", 0)
WIDTH, STEPS, LR = 32, 12, 2e-3
LATENTS = {"cpu": 512, "cuda": 4096}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 8, "dead_after_tokens": 1500, "k_aux": 16},
    "gated": {"l1_coefficient": 0.1},
    "relu": {"l1_coefficient": 0.1},
    "jumprelu": {"target_l0": 8.0, "initial_threshold": 0.6},
    "top_afa": {},
    "batch_topk": {"k": 8},
    "matryoshka": {"k": 8},
    "transcoder": {"k": 8, "target": OTHER, "skip": True},
}
CASES = (("topk", "latents"), *((name, "replicas") for name in SETTINGS))
CLOSE = {"cpu": {"rtol": 2e-3, "atol": 2e-5}, "cuda": {"rtol": 5e-2, "atol": 1e-2}}


def trainer(
    architecture: str, processes: Processes | None = None, parallel: str = "replicas", device: str = "cpu"
) -> SaeTrainer:
    """A trainer of one process, or this process's among several."""
    settings = SETTINGS[architecture]
    config = ARCHITECTURES[architecture].config_class(name="x", hook=HOOK, d_sae=LATENTS[device], **settings)
    figures = ActivationStatistics(WIDTH**0.5, 1.0, [0.1] * WIDTH, [0.1] * WIDTH, 8.0, None)
    statistics = {HOOK: figures, OTHER: figures}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: dict[str, Any] = {}
    if processes is not None:
        options = {"processes": processes, "train": TrainConfig.model_validate({"parallel": parallel})}
    return SaeTrainer(config, statistics, seed=0, dtype=dtype, device=device, **options)


def rows(number: int, n: int = 240) -> torch.Tensor:
    """A batch: sums of a few of many directions."""
    generator = torch.Generator().manual_seed(number)
    directions = F.normalize(torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(99)), dim=1)
    code = (torch.rand(n, 128, generator=generator) < 0.05).float() * torch.rand(n, 128, generator=generator)
    return 3 * code @ directions + 0.05 * torch.randn(n, WIDTH, generator=generator)


def update(made: SaeTrainer, number: int, processes: Processes | None, device: str) -> None:
    """One update on batch `number`; replicas get unequal shares of it."""
    batch, counts = torch.cat([rows(number), rows(number + 1000)], dim=1).to(device), None
    if processes is not None and not made.is_spread:
        n = len(batch)
        size = processes.world_size
        cuts = [0, *(n * (r + 1) // size + (7 if r + 1 < size else 0) for r in range(size))]
        counts = [b - a for a, b in itertools.pairwise(cuts)]
        batch = batch.split(counts)[processes.rank]
    by_autograd = number in (3, 4) and device == "cpu" and made.config.architecture == "topk" and not made.is_spread  # pyright: ignore[reportAttributeAccessIssue]
    if by_autograd:
        made.fused_step.selection.is_too_wide = lambda _selection: True
    made.step({Channel(HOOK): batch[:, :WIDTH], Channel(OTHER): batch[:, WIDTH:]}, LR, counts)
    if by_autograd:
        del made.fused_step.selection.is_too_wide  # the class has its own


def check(one: SaeTrainer, many: SaeTrainer, title: str) -> None:
    """Raises where the state of several processes is not that of one."""
    saved = many.tensors()
    if many.fused_step:
        many.fused_step.exchange.gather_weights(many.sae)
    for name, expected in one.tensors().items():
        found = saved[name]
        if isinstance(found, Piece):
            length = found.tensor.shape[found.axis]
            found, expected = found.tensor, expected.narrow(found.axis, found.start, length)
        # top-AFA's running threshold is an estimate from the first rows of a process's share.
        is_estimate = name == "x/sae.threshold" and one.config.architecture == "top_afa"  # pyright: ignore[reportAttributeAccessIssue]
        close = {"rtol": 0.1, "atol": 0.0} if is_estimate else CLOSE[one.sums.device.type]
        is_close = torch.isclose(found.cpu(), expected.cpu(), **close)
        # In bfloat16 a few pairs cross their threshold in one of the two and not in the other.
        most = 0 if one.sums.device.type == "cpu" else is_close.numel() // 1000
        assert (~is_close).sum() <= most, (
            f"{title} {name}: {int((~is_close).sum())} of {is_close.numel()} numbers differ"
        )


def check_updates(processes: Processes, folder: Path, device: str) -> None:
    """Every way to share the work, against one process; then a checkpoint of several that one goes on from, and back."""
    for architecture, parallel in CASES:
        one, many = trainer(architecture, device=device), trainer(architecture, processes, parallel, device)
        exchange = many.fused_step.exchange if many.fused_step else None
        assert isinstance(exchange, LatentShards if parallel == "latents" else Replicas)
        for number in range(STEPS):
            update(one, number, None, device)
            update(many, number, processes, device)
        check(one, many, f"{architecture} {parallel}")
        if architecture == "topk":
            assert many.n_dead() == one.n_dead() > 0 and float(one.sums[1]) > 0, "AuxK was not reached"
        home = folder / f"{architecture}-{parallel}"
        checkpoint.save(home, many.tokens_seen, tensors_to_write(many.tensors(), processes), {}, processes=processes)
        saved = checkpoint.newest(home, Progress())
        assert saved is not None and set(saved.tensors.names()) == set(one.tensors())
        again, alone = trainer(architecture, processes, parallel, device), trainer(architecture, device=device)
        again.load_tensors(saved.tensors)
        alone.load_tensors(saved.tensors)
        for number in range(STEPS, STEPS + 4):
            update(many, number, processes, device)
            update(again, number, processes, device)
            update(alone, number, None, device)
        for name, value in many.tensors().items():
            held, resumed = (t.tensor if isinstance(t, Piece) else t for t in (value, again.tensors()[name]))
            assert torch.equal(held, resumed), f"{architecture} {parallel} {name}: other bits after a resume"
        check(alone, many, f"{architecture} {parallel} resumed alone")


def check_shards(processes: Processes, folder: Path) -> None:
    """A dictionary spread over processes is published in shards, or joined, and loads as one."""
    one, many = trainer("topk"), trainer("topk", processes, "latents")
    tensors = {name: many.piece(name, value) for name, value in many.sae.state_dict().items()}
    for name, limit in (("joined", 1 << 30), ("shards", 0)):
        dictionary.LARGEST_JOINED_BYTES = limit
        dictionary.publish_shards(
            folder / name, many.sae, many.config, tensors=tensors, provenance=Provenance(run="x"), processes=processes
        )
        assert len(list((folder / name).glob("weights*"))) == (1 if limit else processes.world_size)
        loaded = dictionary.load(folder / name)
        assert loaded.config == one.config
        for key, value in one.sae.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, device = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cpu"
    with connected() as several:
        check_updates(several, where, device)
        if device == "cpu":
            check_shards(several, where)
        print(f"process {several.rank} of {several.world_size}: equal")
    exit_process(0)
