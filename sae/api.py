"""What `import sae` offers: train, load, harvest, and the feature store as tables. docs/python.md shows all of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from feature_store import frames
from feature_store.store import Store
from sae.architectures.base import SparseAutoencoder
from sae.foundation.screen import Screen
from sae.model.hookpoints import Channel, HookPoint
from sae.model.vocabulary import token_bytes
from sae.pipeline.config import RunConfig, config_of_run, load_config
from sae.pipeline.run import run
from sae.pipeline.sources import harvester_of
from sae.pipeline.summary import RunSummary
from sae.publish.dictionary import load

if TYPE_CHECKING:
    from pandas import DataFrame

    from sae.publish.notebook import FeatureWidget

__all__ = [
    "RunConfig",
    "SparseAutoencoder",
    "TextActivations",
    "contexts",
    "features",
    "harvest",
    "load",
    "load_config",
    "scores",
    "show",
    "train",
]  # fmt: skip


class TextActivations(NamedTuple):
    """The activations of one text at one hook point.

    `tokens` is the text of every token, x [tokens, d] its activations in the model's own units, and `is_read` [tokens]
    is False for tokens that dictionaries are never trained on: the first of a context, and special ones.
    """

    tokens: list[str]
    x: Float[Tensor, "tokens d"]
    is_read: Bool[Tensor, " tokens"]


def train(config: RunConfig | str | Path, quiet: bool = False) -> RunSummary:
    """Performs a whole run, as `sae-train` does, and returns its figures. A run that was begun before goes on.

    `config` is a value of `load_config` or the path of a YAML file.
    """
    settings = config if isinstance(config, RunConfig) else load_config(Path(config))
    return run(settings, Screen(quiet=quiet))


def harvest(folder: str | Path, texts: list[str], hook: str) -> list[TextActivations]:
    """The activations of every text at a hook point such as "resid_post.8", one forward pass per text.

    `folder` is that of a run: its model is loaded in the precision of the run, and a text is cut at its `ctx_len`.
    """
    config = config_of_run(Path(folder), "Give the folder of a run, such as runs/quickstart.")
    channel = Channel(HookPoint.parse(hook))
    harvester = harvester_of(config, Path(folder), (channel,), Screen(quiet=True))
    lm = harvester.lm
    spelling = token_bytes(lm.tokenizer)

    out = []
    for text in texts:
        ids = lm.token_ids(text, config.text.ctx_len)
        context = np.array(ids, np.int64)[None]
        batch = harvester.harvest(context, np.zeros_like(context))
        tokens = [spelling[number].decode("utf-8", "replace") for number in ids]
        out.append(TextActivations(tokens, batch.x[channel][0], batch.keep[0]))

    return out


def features(folder: str | Path) -> DataFrame:
    """A table of all features of a dictionary folder: density, activations, label, explainer, score."""
    with closing(_store(folder)) as store:
        return frames.features(store)


def scores(folder: str | Path) -> DataFrame:
    """A table of all scores of a dictionary folder, each with its explanation, interval and chance level."""
    with closing(_store(folder)) as store:
        return frames.scores(store)


def contexts(folder: str | Path, feature: int, group: Literal["top", "stratum", "all"] = "all") -> DataFrame:
    """A table of one feature's contexts: text before the peak, the peak, text after it, and activations by token."""
    with closing(_store(folder)) as store:
        return frames.contexts(store, feature, group)


def show(folder: str | Path, feature: int = 0) -> FeatureWidget:
    """The page of a feature of a dictionary folder, as the last value of a notebook's cell; links in it lead on.

    Needs `saedex[notebook]`. Raises `ConfigError` if there is no such feature.
    """
    from sae.publish.notebook import FeatureWidget

    return FeatureWidget(Path(folder), feature)


def _store(folder: str | Path) -> Store:
    return Store(Path(folder) / "store")
