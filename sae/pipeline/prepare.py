"""Rooms 1 to 4 of a run: the model, the tokens, and activations that are harvested when they are first asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sae.errors import ConfigError
from sae.foundation.device import device_called
from sae.foundation.distributed import ALONE, Group
from sae.foundation.files import write_json
from sae.foundation.screen import Screen
from sae.model import language_model
from sae.model.hookpoints import Channel
from sae.model.language_model import LanguageModel
from sae.pipeline.config import TrainConfig
from sae.stream.activation_cache import ActivationCache
from sae.stream.activations import Activations, segment_size
from sae.stream.harvest import HarvestConfig, Harvester, choose_dtype
from sae.text import tokens
from sae.text.tokens import Contexts


@dataclass
class Rooms:
    """What the first rooms made and the later ones use."""

    lm: LanguageModel
    dtype: torch.dtype
    train: Activations
    held_out: Activations


def prepare(
    config: TrainConfig,
    folder: Path,
    screen: Screen,
    channels: tuple[Channel, ...] | None = None,
    cache: Path | None = None,
    group: Group = ALONE,
) -> Rooms:
    """Rooms 1 to 4: the model, the tokens, and activations that are harvested when they are first asked for.

    `channels` are those of the config's dictionaries, and `cache` lies in the run folder, where they are not given. Of
    several processes the first reads the text; they share the training stream, and each has the held-out one.
    """
    language_model.set_quiet()
    with screen.stage("model", 1, "model") as stage:
        lm = language_model.load(config.model, device_called(config.device, "device:"))
        limit = getattr(lm.text_config, "max_position_embeddings", None)
        if limit is not None and config.text.ctx_len > limit:
            raise ConfigError(f"text.ctx_len: {config.text.ctx_len} tokens, the model reads at most {limit}.")
        stage.update(1)
    if channels is None:
        channels = tuple(dict.fromkeys(channel for sae in config.sae for channel in sae.channels))
    Harvester(
        lm, channels, config.harvest, config.text.packing
    )  # a wrong hook point is refused before the text is read
    with screen.stage("tokens", config.train.tokens) as stage:
        contexts, held_out = group.from_first(
            lambda: tokens.build(
                config.text, lm.tokenizer, lm.prepend_bos, config.train.tokens, folder / "tokens", stage.update
            )
        )
    dtype = group.from_first(lambda: _dtype(config, folder, lm, contexts))
    lm.cast(dtype)
    harvester = Harvester(lm, channels, config.harvest, config.text.packing)
    size = segment_size(harvester, contexts, config.shuffle)
    home = cache or folder / "activations"
    kept = _cache(config.harvest, harvester, config.text.ctx_len, home, screen, shared=cache is None)
    train = Activations(harvester, contexts, size, home, cache=kept, group=group)
    if cache is None:
        train.claim_room()
    if group.size > 1:
        train.measure()
    kept = ActivationCache(home / "held_out", harvester, say=screen.say)
    return Rooms(
        lm, dtype, train, Activations(harvester, held_out, min(size, held_out.n_contexts), kept.folder, train, kept)
    )


def _cache(
    config: HarvestConfig, harvester: Harvester, ctx_len: int, home: Path, screen: Screen, shared: bool
) -> ActivationCache | None:
    """Where the activations of the training stream are kept, if they are: `shared` by runs where the config says so."""
    eight_bits = config.cache_dtype == "int8"
    if not config.caches(harvester.lm.device):
        if eight_bits:
            raise ConfigError(
                "harvest.cache_dtype: int8 is what a cache keeps, and none is kept here (cache: auto keeps none on a GPU). Set "
                "harvest.cache: shared or true, or leave cache_dtype out."
            )
        return None
    if shared and config.cache == "shared":
        return ActivationCache.shared(harvester, ctx_len, eight_bits, screen.say)
    return ActivationCache(home, harvester, eight_bits, screen.say)


def harvester_of(config: TrainConfig, folder: Path, channels: tuple[Channel, ...], screen: Screen) -> Harvester:
    """A finished run's model in the arithmetic that it was trained in, ready to harvest texts that people bring."""
    path = folder / "dtype.json"
    if not path.exists():
        raise ConfigError(f"{folder}: this run has not got as far as its model. Run sae-train to its end first.")
    language_model.set_quiet()
    with screen.stage("model", 1, "model"):
        lm = language_model.load(config.model, device_called(config.device, "device:"))
    lm.cast(getattr(torch, json.loads(path.read_text())))
    return Harvester(lm, channels, config.harvest, config.text.packing)


def _dtype(config: TrainConfig, folder: Path, lm: LanguageModel, contexts: Contexts) -> torch.dtype:
    """The run's arithmetic, measured once and remembered, so that a resumed run computes the same bits."""
    path = folder / "dtype.json"
    if not path.exists():
        chosen = choose_dtype(
            lm, config.model.dtype, contexts.ids[: config.harvest.contexts_per_pass(contexts.ctx_len, lm.device)]
        )
        write_json(path, str(chosen).removeprefix("torch."))
    return getattr(torch, json.loads(path.read_text()))
