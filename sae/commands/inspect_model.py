"""`sae inspect-model MODEL --text FILES`: the norms of a model's activations, and which layers and positions to harvest."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from sae.apply.model_inspection import Inspection
    from sae.model.language_model import LanguageModel

OFTEN_FAR = 10.0  # median norms; from there on the first position is told to be dropped


@final
class InspectModel(Command):
    """Prints a line per layer, and what that means for training dictionaries."""

    name = "inspect-model"
    help = "see which layers of a model do something, and which positions to leave out"
    order = 46
    epilog = (
        "A layer is a void at a token where it hardly lengthens the residual stream. Positions are far off over ten median norms; "
        "their share of the squares about the mean is what a dictionary of unfiltered activations would be trained on. Several "
        "models, such as checkpoints of one training, are shown one after the other. docs/inspect-model.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The models and the text."""
        parser.add_argument(
            "models",
            nargs="+",
            metavar="MODEL",
            help="a repository of the hub, a folder, or a run or YAML file whose model it is",
        )
        parser.add_argument("--text", default="installed-docs", metavar="FILES", help="default: installed-docs")
        parser.add_argument("--texts", type=int, default=64, help="texts to read, one context of each (default: 64)")
        parser.add_argument("--ctx-len", type=int, default=128, help="tokens per context (default: 128)")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")

    def run(self, arguments: Namespace) -> int:
        """Inspects every model and prints what it found."""
        from sae.errors import ConfigError
        from sae.text.brought import some_texts

        if arguments.ctx_len < 2 or arguments.texts < 1:
            raise ConfigError(f"--ctx-len {arguments.ctx_len}, --texts {arguments.texts}: wanted are at least 2 and 1.")
        texts = some_texts(arguments.text, 4 * arguments.texts)
        out = {}
        for name in arguments.models:
            lm, inspection = inspect_model(name, texts, n=arguments.texts, ctx_len=arguments.ctx_len)
            _print(lm, inspection)
            out[name] = _as_json(lm, inspection)
        if arguments.json:
            arguments.json.write_text(json.dumps(out, indent=1), encoding="utf-8")
        return 0


def inspect_model(name: str, texts: list[str], *, n: int, ctx_len: int) -> tuple[LanguageModel, Inspection]:
    """Loads a model and inspects it on the first `n` texts that fill a context; raises `DataError` if none does."""
    import numpy as np

    from sae.apply.model_inspection import harvest_points, inspect
    from sae.errors import DataError
    from sae.foundation.device import device_called
    from sae.model import language_model
    from sae.model.hookpoints import Channel
    from sae.pipeline.opening import model_named
    from sae.stream.harvest import HarvestConfig, Harvester, choose_dtype

    language_model.set_quiet()
    config = model_named(name)
    lm = language_model.load(config, device_called("auto", "device:"))
    lm.cast(choose_dtype(lm.device, config.dtype))
    rows = [row for row in (lm.token_ids(text, ctx_len) for text in texts) if len(row) == ctx_len][:n]
    if not rows:
        raise DataError(f"no text has {ctx_len} tokens or more; give longer ones, or a smaller --ctx-len.")
    channels = tuple(map(Channel, harvest_points(sorted(lm.blocks.running))))
    return lm, inspect(Harvester(lm, channels, HarvestConfig(), "joined"), np.array(rows))


def _print(lm: LanguageModel, inspection: Inspection) -> None:
    from sae.foundation.visible import visible

    print(visible(f"{lm.name}: {inspection.n_tokens:,} tokens"))
    print("layer  median norm  first position  void  far off  their share of squares  massive  in coordinates")
    for a in inspection.layers:
        places = ", ".join(map(str, a.coordinates)) or "-"
        print(
            f"{a.layer:>5}  {a.median_norm:>11.1f}  {a.first_norm:>14.1f}  {a.void:>4.0%}  {a.far:>7.2%}  {a.share_of_far:>22.1%}  "
            f"{a.massive:>7}  {places}"
        )

    fewest = sorted(inspection.layers, key=lambda a: (a.void, a.layer))[:3]
    print(f"Layers that lengthen the stream most often: {', '.join(str(a.layer) for a in fewest)}.")
    first = [str(a.layer) for a in inspection.layers if a.first_norm > OFTEN_FAR * a.median_norm]
    if first:
        print(
            f"The first position is far off after layers {', '.join(first)}: keep harvest.drop_positions: 1 (the default)."
        )
    far = [a for a in inspection.layers if a.far > 0]
    if far:
        tokens = ", ".join(repr(lm.tokenizer.decode([token])) for token, _ in inspection.far_tokens[:8])
        print(
            visible(
                f"Other positions are far off too (tokens {tokens}): harvest.max_norm_multiple: 10 leaves them out."
            )
        )
    print()


def _as_json(lm: LanguageModel, inspection: Inspection) -> dict[str, object]:
    return {
        "model_sha256": lm.sha256,
        "n_tokens": inspection.n_tokens,
        "layers": [a._asdict() for a in inspection.layers],
        "norm_by_position": inspection.by_position.tolist(),
        "far_tokens": inspection.far_tokens,
    }
