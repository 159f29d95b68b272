"""What a run reads: the language model, the tokens, and activations that are harvested on first use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sae.errors import ConfigError
from sae.foundation.device import device_called
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import write_json
from sae.foundation.screen import Screen
from sae.model import language_model
from sae.model.hookpoints import Channel, resolve_all
from sae.model.language_model import LanguageModel
from sae.pipeline.config import RunConfig
from sae.stream.activation_cache import ActivationCache
from sae.stream.activations import Activations, segment_size
from sae.stream.harvest import HarvestConfig, Harvester, choose_dtype
from sae.stream.packing import check_separate
from sae.text import tokens
from sae.text.tokens import Contexts


@dataclass
class Sources:
    """The model, the precision of its forward pass, and the activations of training and held-out text."""

    lm: LanguageModel
    dtype: torch.dtype
    train: Activations
    held_out: Activations


def prepare(
    config: RunConfig,
    folder: Path,
    screen: Screen,
    *,
    channels: tuple[Channel, ...] | None = None,
    scratch: Path | None = None,
    processes: Processes = ALONE,
) -> Sources:
    """Loads the model, reads the text, and sets up the streams of activations.

    `channels` default to those of the config's dictionaries; activations are kept in the run folder unless `scratch`
    takes its place. Of several processes the first reads the text; they share the training stream, and each has the
    held-out one.
    """
    lm = _load_model(config, screen)
    _check_context_length(config, lm)
    if channels is None:
        channels = tuple(dict.fromkeys(channel for sae in config.sae for channel in sae.channels))

    resolve_all(lm, (channel.hook for channel in channels))  # before the text is read, which may take long
    if config.text.packing == "separate":
        check_separate(lm, config.text.ctx_len)

    with screen.progress("tokens", config.train.tokens) as progress:
        contexts, held_out = processes.on_first(
            lambda: tokens.build(
                config.text,
                lm.tokenizer,
                prepend_bos=lm.prepend_bos,
                n_tokens=config.train.tokens,
                folder=folder / "tokens",
                progress=progress,
            )
        )

    for stream in (contexts, held_out):
        lm.check_embedded(stream.ids)

    dtype = processes.on_first(lambda: _dtype_of_run(config, folder, lm, contexts))
    lm.cast(dtype)

    harvester = Harvester(lm, channels, config.harvest, config.text.packing)
    size = segment_size(harvester, contexts, config.shuffle)
    home = scratch or folder / "activations"
    cache = _cache(config, harvester, home, screen, may_share=scratch is None)
    train = Activations(harvester, contexts, size, folder=home, cache=cache, processes=processes)
    if scratch is None:
        train.check_disk_space()
    if processes.world_size > 1:
        train.measure()

    held_out_cache = ActivationCache(home / "held_out", harvester, progress=screen.silent_progress())
    held_out_size = min(size, held_out.n_contexts)
    held_out_stream = Activations(
        harvester, held_out, held_out_size, folder=held_out_cache.folder, training=train, cache=held_out_cache
    )

    return Sources(lm, dtype, train, held_out_stream)


def harvester_of(config: RunConfig, folder: Path, channels: tuple[Channel, ...], screen: Screen) -> Harvester:
    """A finished run's model in the precision it was trained in, ready to harvest texts that people bring."""
    path = folder / "dtype.json"
    if not path.exists():
        raise ConfigError(f"{folder}: this run has not loaded its model yet. Let sae-train finish it first.")
    lm = _load_model(config, screen)
    lm.cast(getattr(torch, json.loads(path.read_text())))
    return Harvester(lm, channels, config.harvest, config.text.packing)


def _load_model(config: RunConfig, screen: Screen) -> LanguageModel:
    language_model.set_quiet()
    with screen.progress("model", 1, "model") as progress:
        lm = language_model.load(config.model, device_called(config.device, "device:"))
        progress.update(1)
    return lm


def _check_context_length(config: RunConfig, lm: LanguageModel) -> None:
    limit = getattr(lm.text_config, "max_position_embeddings", None)
    if limit is not None and config.text.ctx_len > limit:
        raise ConfigError(f"text.ctx_len: {config.text.ctx_len} tokens, the model reads at most {limit}.")


def _dtype_of_run(config: RunConfig, folder: Path, lm: LanguageModel, contexts: Contexts) -> torch.dtype:
    """The precision of the forward pass, measured once and remembered, so that a resumed run computes the same bits."""
    path = folder / "dtype.json"
    if not path.exists():
        n_contexts = config.harvest.contexts_per_pass(contexts.ctx_len, lm.device)
        chosen = choose_dtype(lm, config.model.dtype, contexts.ids[:n_contexts])
        write_json(path, str(chosen).removeprefix("torch."))
    return getattr(torch, json.loads(path.read_text()))


def _cache(
    config: RunConfig, harvester: Harvester, home: Path, screen: Screen, *, may_share: bool
) -> ActivationCache | None:
    """The store of the training stream's activations, if the config keeps them."""
    settings: HarvestConfig = config.harvest
    is_int8 = settings.cache_dtype == "int8"
    if not settings.caches(harvester.lm.device):
        if is_int8:
            raise ConfigError(
                "harvest.cache_dtype: int8 needs a cache, and this run keeps none (cache: auto keeps none on a "
                "GPU). Set harvest.cache: shared or true, or leave cache_dtype out."
            )
        return None

    progress = screen.silent_progress()
    if may_share and settings.cache == "shared":
        return ActivationCache.shared(harvester, config.text.ctx_len, is_int8=is_int8, progress=progress)

    return ActivationCache(home, harvester, is_int8=is_int8, progress=progress)
