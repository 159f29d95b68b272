"""`sae bench stream`: tokens to a trained dictionary, beside harvest alone, the step alone, and sparsify's own trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.architectures import ArchitectureConfig
from sae.architectures.gradient import GradientConfig
from sae.architectures.topk import TopKConfig
from sae.benchmarks import cached
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.screen import Progress
from sae.foundation.stop import StopRequest
from sae.foundation.timing import of_peer, timed
from sae.model.hookpoints import Channel, HookPoint
from sae.model.language_model import LanguageModel
from sae.stream.activations import Activations, segment_size
from sae.stream.harvest import HarvestConfig, Harvester
from sae.stream.shuffle import ShuffleConfig
from sae.text.tokens import Contexts
from sae.training.loop import TrainingLoop
from sae.training.optimiser import TrainConfig
from sae.training.trainer import SaeTrainer


class Size(NamedTuple):
    """A language model of SmolLM2's family with random weights, and the dictionary trained on one of its layers."""

    width: int
    layers: int
    layer: int
    vocabulary: int
    latents: int
    k: int
    batch_tokens: int
    ctx_len: int
    tokens: int

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def key_heads(self) -> int:
        return max(1, self.heads // 3)

    @property
    def hidden(self) -> int:
        return self.width * 8 // 3

    def gradient_harvest(self) -> float:
        """FLOPs of harvesting a token's gradient, over the FLOPs of harvesting its activation.

        Counts the whole forward pass with the head, and the backward pass through head and blocks above the hook
        point; no weight gradients. Of attention the causal half is counted, its backward pass as 2.5 times its forward
        pass.
        """
        linear = 2 * self.width * (2 * self.width + 2 * 64 * self.key_heads + 3 * self.hidden)
        attention = 2 * self.ctx_len * self.width
        above = self.layers - self.layer - 1
        back = above * (linear + 2.5 * attention)
        whole = self.layers * (linear + attention) + 2 * 2 * self.width * self.vocabulary + back

        return whole / ((self.layer + 1) * (linear + attention))


GPU_SIZE = Size(576, 30, 15, 49_152, latents=36_864, k=32, batch_tokens=8192, ctx_len=256, tokens=1 << 24)
CPU_SIZE = Size(192, 6, 4, 4096, latents=2048, k=32, batch_tokens=1024, ctx_len=128, tokens=1 << 17)


def random_model(size: Size, device: torch.device) -> LanguageModel:
    """A Llama of that size; speed does not depend on what the weights are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.hidden, head_dim=64,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.key_heads, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, max_position_embeddings=size.ctx_len, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    lm = LanguageModel(model, SimpleNamespace(all_special_ids=[0]), "random", "", licence="", prepend_bos=False)
    model.eval().requires_grad_(False).to(device)
    lm.cast(torch.bfloat16 if device.type == "cuda" else torch.float32)

    return lm


def write_tokens(size: Size, folder: Path) -> Contexts:
    """Random contexts on disk, as a run keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    n_contexts = size.tokens // size.ctx_len
    random = np.random.default_rng(0)
    random.integers(1, size.vocabulary, (n_contexts, size.ctx_len), dtype=np.uint16).tofile(folder / "ids.bin")
    np.zeros((n_contexts, size.ctx_len), np.uint32).tofile(folder / "documents.bin")
    return Contexts(folder, size.ctx_len, False, "<u2", n_contexts=n_contexts)


class Stream:
    """What all timings share: the model, the tokens and the sizes of pieces."""

    def __init__(
        self,
        size: Size,
        device: torch.device,
        folder: Path,
        processes: Processes = ALONE,
        **train: Any,
    ):
        self.size, self.device, self.folder, self.processes = size, device, folder, processes
        self.lm = random_model(size, device)
        self.contexts = processes.on_first(lambda: write_tokens(size, folder))
        self.hook = HookPoint("resid_post", size.layer)
        ring = 1_000_000_000 if device.type == "cuda" else 50_000_000
        self.shuffle = ShuffleConfig(buffer_bytes=ring * processes.world_size)  # as much in every process
        batch_tokens = size.batch_tokens * processes.world_size
        self.train = TrainConfig.model_validate({"tokens": size.tokens, "batch_tokens": batch_tokens, **train})
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def activations(self, config: ArchitectureConfig) -> Activations:
        """The stream of a dictionary's activations, harvested anew."""
        harvester = Harvester(self.lm, config.channels, HarvestConfig(), "joined")
        pieces = segment_size(harvester, self.contexts, self.shuffle)
        return Activations(harvester, self.contexts, pieces, folder=None, processes=self.processes)

    def config(self, gradient: bool = False) -> ArchitectureConfig:
        """The dictionary's settings."""
        kind = GradientConfig if gradient else TopKConfig
        return kind(name="x", hook=self.hook, d_sae=self.size.latents, k=self.size.k)

    def harvest(self, gradient: bool = False) -> float:
        """Seconds to harvest all tokens, without training."""
        activations = self.activations(self.config(gradient))
        activations.segment(0)  # compiled by now
        return _seconds(lambda: [activations.segment(g) for g in range(activations.n_segments)], self.device)

    def step(self) -> float:
        """Seconds for the updates on all tokens, with the activations in memory."""
        activations = self.activations(self.config())
        x = activations.segment(0).x[Channel(self.hook)]
        trainer = SaeTrainer.for_activations(activations, self.config(), seed=0, dtype=self.dtype)
        rows = {Channel(self.hook): x[: self.size.batch_tokens].clone()}
        return (
            timed(lambda: trainer.step(rows, 1e-4), self.device).seconds
            * self.size.tokens
            / len(rows[Channel(self.hook)])
        )

    def end_to_end(self) -> float:
        """Seconds from tokens on disk to a trained dictionary: harvest, mixing, updates."""
        activations = self.activations(self.config())
        loop = TrainingLoop(
            self.train,
            self.shuffle,
            (self.config(),),
            activations,
            seed=0,
            selection_dtype=self.dtype,
            folder=self.folder / "checkpoints",
            log=lambda name, line, trainer: None,
        )
        return _seconds(lambda: loop.run(Progress(), StopRequest()), self.device)

    def read(self) -> float:
        """Seconds to read all tokens from disk."""
        return _seconds(lambda: [int(part.sum()) for part in np.array_split(self.contexts.ids, 64)], self.device)

    def sparsify(self) -> float:
        """Seconds of sparsify's own trainer on the same model, layer and tokens."""
        from datasets import Dataset
        from sparsify import RunConfig, SparseCoderConfig, Trainer  # pyright: ignore[reportMissingImports]

        per_batch = self.size.batch_tokens // self.size.ctx_len
        coder = SparseCoderConfig(num_latents=self.size.latents, k=self.size.k)

        def trainer(n_contexts: int) -> Any:
            ids = torch.from_numpy(self.contexts.ids[:n_contexts].astype(np.int64))
            rows = Dataset.from_dict({"input_ids": ids.numpy()}).with_format("torch")
            config = RunConfig(
                coder, batch_size=per_batch, hookpoints=[f"layers.{self.size.layer}"], optimizer="adam",
                log_to_wandb=False, save_dir=str(self.folder), run_name="peer", save_every=1 << 30,
            )  # fmt: skip
            return Trainer(config, rows, self.lm.model)

        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            trainer(8 * per_batch).fit()  # its kernels are compiled by now
            n = max(8, min(self.contexts.n_contexts // per_batch, 128)) * per_batch  # a part of the tokens is enough
            their_trainer = trainer(n)
            return _seconds(their_trainer.fit, self.device) * self.contexts.n_contexts / n


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(device: torch.device, size: Size | None = None) -> dict[str, Any]:
    """Seconds of every part for the same tokens; the reason for peers that could not run."""
    size = size or (GPU_SIZE if device.type == "cuda" else CPU_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(size, device, Path(folder))
        timings: dict[str, Any] = {"tokens on disk": stream.read(), "harvest alone": stream.harvest()}
        timings |= {"step alone": stream.step(), "end to end": stream.end_to_end()}
        timings |= cached.measure(
            lambda: stream.activations(stream.config()), Path(folder), lambda call: _seconds(call, device)
        )
        timings["gradient harvest alone"] = stream.harvest(gradient=True)
        timings["sparsify end to end"] = of_peer(stream.sparsify)

    return {"size": size._asdict(), "seconds": timings}


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table, each beside the whole way."""
    seconds, tokens = measured["seconds"], measured["size"]["tokens"]
    whole = seconds["end to end"]
    lines = ["| | tokens/s | time against end to end |", "|---|---|---|"]

    for name, duration in seconds.items():
        if isinstance(duration, str):
            lines.append(f"| {name} | {duration.splitlines()[0].replace('|', '/')} | |")
        else:
            lines.append(f"| {name} | {tokens / duration:,.0f} | {duration / whole:.2f} |")

    floor = (seconds["harvest alone"] + seconds["step alone"]) / whole
    multiple = Size(**measured["size"]).gradient_harvest()
    gradient = seconds["gradient harvest alone"] / (multiple * seconds["harvest alone"])

    return "\n".join(
        [
            *lines,
            "",
            f"- harvest alone and step alone, one after the other, over end to end: {floor:.2f}",
            cached.sentence(seconds),
            f"- gradient harvest over its FLOPs ({multiple:.2f} times those of harvest) at the rate of harvest: {gradient:.2f}",
        ]
    )
