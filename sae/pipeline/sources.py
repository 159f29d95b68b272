"""What a run reads: the language model, the tokens, and activations that are harvested on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sae.architectures.settings import ReadsContext
from sae.errors import ArtefactError, ConfigError
from sae.foundation.device import device_called
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import read_json, read_sealed, write_json, write_sealed
from sae.foundation.screen import Screen
from sae.model import language_model
from sae.model.hookpoints import Channel, resolve_all
from sae.model.language_model import LanguageModel
from sae.pipeline.config import RunConfig
from sae.pipeline.sizes import check_sizes
from sae.publish import dictionary
from sae.publish.dictionary import read_card
from sae.stream.activation_cache import ActivationCache
from sae.stream.activations import Activations, segment_size
from sae.stream.harvest import HarvestConfig, Harvester, choose_dtype
from sae.stream.packing import check_separate
from sae.text import tokens

MODEL, DTYPE = "model.json", "dtype.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    lm = _load_model(config, folder, screen)
    processes.on_first(lambda: _check_same_model(folder, lm))
    _check_context_length(config, lm)
    processes.on_first(lambda: check_sizes(config, lm, folder, processes.world_size))
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
    dtype = processes.on_first(lambda: _dtype_of_run(config, folder, lm))
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
    if not (folder / DTYPE).exists():
        raise ConfigError(f"{folder}: this run has not loaded its model yet. Let sae-train finish it first.")
    lm = _load_model(config, folder, screen)
    _check_same_model(folder, lm)
    lm.cast(_read_dtype(folder / DTYPE))
    return Harvester(lm, channels, config.harvest, config.text.packing)


def _add_predictors(lm: LanguageModel, config: RunConfig, folder: Path) -> None:
    """Gives the model what the run's temporal dictionaries predict, so that it is harvested like an activation."""
    for settings in config.sae:
        hook = settings.hook.predicted
        if hook in settings.reads:
            sae = dictionary.load(folder / "dictionaries" / settings.name).to(lm.device)
            assert isinstance(sae, ReadsContext)
            lm.predictors[hook] = sae.predict


def _load_model(config: RunConfig, folder: Path, screen: Screen) -> LanguageModel:
    language_model.set_quiet()
    with screen.progress("model", 1, "model") as progress:
        lm = language_model.load(config.model, device_called(config.device, "device:"))
        progress.update(1)
    _add_predictors(lm, config, folder)
    return lm


def _check_same_model(folder: Path, lm: LanguageModel) -> None:
    """Writes down which model a run was begun with; raises `ArtefactError` if it is another one now."""
    path = folder / MODEL
    if not path.exists():
        write_sealed(path, {"name": lm.name, "sha256": lm.sha256})
        return
    begun_with = read_sealed(path).get("sha256")
    if begun_with != lm.sha256:
        raise ArtefactError(
            f"{lm.name}: SHA-256 of the model's files is {lm.sha256}, the run {folder} was begun with {begun_with}. "
            "Put the model back, or use another `name`."
        )


def check_model_of(dictionary_folder: Path, lm: LanguageModel) -> None:
    """Raises `ArtefactError` if a dictionary was trained on another model than this one, as far as its card says."""
    trained_on = read_card(dictionary_folder).model.sha256
    if trained_on not in (None, lm.sha256):
        raise ArtefactError(
            f"{lm.name}: SHA-256 of the model's files is {lm.sha256}, the dictionary {dictionary_folder} was trained on "
            f"{trained_on}. Put the model back, or give the run with the right one: --run RUN."
        )


def _read_dtype(path: Path) -> torch.dtype:
    name = read_json(path)
    if name not in DTYPES:
        raise ArtefactError(f"{path}: {name!r} is not one of {', '.join(DTYPES)}; the file is damaged.")
    return DTYPES[name]


def _check_context_length(config: RunConfig, lm: LanguageModel) -> None:
    limit = getattr(lm.text_config, "max_position_embeddings", None)
    if limit is not None and config.text.ctx_len > limit:
        raise ConfigError(f"text.ctx_len: {config.text.ctx_len} tokens, the model reads at most {limit}.")


def _dtype_of_run(config: RunConfig, folder: Path, lm: LanguageModel) -> torch.dtype:
    """The precision of the forward pass, chosen once and remembered, so that a run may go on on another machine."""
    path = folder / DTYPE
    if not path.exists():
        write_json(path, str(choose_dtype(lm.device, config.model.dtype)).removeprefix("torch."))
    return _read_dtype(path)


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
