"""`sae bench models`: what saedex does with a tiny random model of every causal-language-model class of transformers."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.benchmarks.tiny_models import CannotBuild, save
from sae.errors import ConfigError, ReadsAheadError
from sae.foundation.screen import Progress
from sae.model import language_model
from sae.model.blocks import probe_ids
from sae.model.hookpoints import SITES, Channel, HookPoint, Place, find_places
from sae.model.language_model import FolderModel, LanguageModel
from sae.model.unembed import OUTER, residual_directions, token_logits
from sae.stream.harvest import HarvestConfig, Harvester

CONTEXTS, LENGTH = 3, 48  # three times the window of the tiny models
DOCUMENT = 20  # tokens of the first of two documents in a context
TOLERANCE = 1e-3
PROMOTED, DIRECTIONS = 5, 8
READS = {**{inner: outer for inner, outer in OUTER.items()}, "mlp_in": "mlp_out"}  # site -> what depends on it alone
REFUSED = "refused"


@dataclass
class ModelChecks:
    """One class: its sites, each with the layers that have it, and the outcome of every check.

    An outcome is "" if the check holds, "refused" if saedex says that the model cannot do that, or else the reason.
    """

    name: str
    cannot_build: str = ""
    reads_ahead: bool = False  # no causal model, in spite of its class; refused
    n_layers: int = 0
    sites: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        return not self.cannot_build and not self.reads_ahead and not any(set(self.outcomes.values()) - {"", REFUSED})


class _Differs(Exception):
    """A check does not hold; what differs."""


def measure(names: list[str], progress: Progress) -> list[ModelChecks]:
    """The checks of every class, in the order of the names."""
    language_model.set_quiet()
    every = []
    for number, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            every.append(check(name, Path(folder)))
        progress.update(number + 1, len(names))
    return every


def check(name: str, folder: Path) -> ModelChecks:
    """Builds a tiny model of a class, saves it to `folder`, loads it as a run does, and performs every check."""
    checks = ModelChecks(name)
    try:
        save(name, folder)
    except CannotBuild as error:
        checks.cannot_build = str(error)
        return checks

    def loads() -> None:
        try:
            lms.append(language_model.load(FolderModel(source="folder", path=folder), torch.device("cpu")))
        except ReadsAheadError:
            checks.reads_ahead = True
            raise
        checks.n_layers = len(lms[0].blocks.running)

    lms: list[LanguageModel] = []
    checks.outcomes["loads"] = _outcome(loads)
    if checks.outcomes["loads"]:
        return checks

    checks.outcomes["sites"] = _outcome(lambda: checks.sites.update(_sites(lms[0])))
    if not checks.outcomes["sites"]:
        checks.outcomes |= {title: _outcome(lambda work=work: work(lms[0])) for title, work in CHECKS.items()}
    return checks


def _outcome(work: Callable[[], None]) -> str:
    try:
        work()
    except _Differs as error:
        return str(error)
    except Exception as error:  # whatever the code of a model may raise; the table says it
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def _sites(lm: LanguageModel) -> dict[str, int]:
    counts = Counter(site for layer in lm.blocks.running for site in find_places(lm, layer))
    return {site: counts[site] for site in SITES if counts[site]}


def _ids(lm: LanguageModel) -> np.ndarray:
    return probe_ids(lm.model, lm.special_ids, (CONTEXTS, LENGTH)).numpy()


def _harvester(lm: LanguageModel, packing: str = "joined") -> Harvester:
    """Harvests at every hook point of the model."""
    hooks = [HookPoint(site, layer) for layer in lm.blocks.running for site in find_places(lm, layer)]
    return Harvester(lm, tuple(map(Channel, hooks)), HarvestConfig(batch_contexts=CONTEXTS, compile=False), packing)


def _harvested(harvester: Harvester, ids: np.ndarray, owners: np.ndarray | None = None) -> dict[HookPoint, Tensor]:
    batch = harvester.harvest(ids, np.zeros_like(ids) if owners is None else owners)
    return {channel.hook: x for channel, x in batch.x.items()}


def _expect_equal(name: str, x: Tensor, expected: Tensor) -> None:
    if x.shape != expected.shape:
        raise _Differs(f"{name}: shape {list(x.shape)} instead of {list(expected.shape)}")
    difference = float((x - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise _Differs(f"{name}: differs by {difference:.1%}")


def _activations(lm: LanguageModel) -> None:
    """resid_post of every layer is the hidden state that transformers gives out, and the next layer's resid_pre.

    The first hidden state is the embedding, which some families leave out.
    """
    x, ids, layers = _harvested(_harvester(lm), _ids(lm)), torch.from_numpy(_ids(lm)), lm.blocks.running
    with torch.no_grad():
        states = lm.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    if states is None or len(states) != len(layers) + 1:
        raise _Differs(f"{0 if states is None else len(states)} hidden states of transformers for {len(layers)} layers")
    begins_later = states[0].shape != states[1].shape or not torch.allclose(
        states[0].flatten(2), x[HookPoint("resid_pre", layers[0])]
    )
    for number, (layer, following) in enumerate(pairwise(layers)):  # the last hidden state is the final norm's
        stream = x[HookPoint("resid_post", layer)]
        _expect_equal(f"resid_post.{layer}", stream, states[number + (not begins_later)].flatten(2))
        _expect_equal(f"resid_pre.{following}", x[HookPoint("resid_pre", following)], stream)


def _sums(lm: LanguageModel) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, in layers that have these sites."""
    x = _harvested(_harvester(lm), _ids(lm))
    for layer in lm.blocks.running:
        parts = [x.get(HookPoint(site, layer)) for site in ("resid_pre", "attn_out", "mlp_out")]
        if parts[1] is not None and parts[2] is not None:
            total = parts[0] + parts[1] + parts[2]  # pyright: ignore[reportOptionalOperand]
            _expect_equal(f"the sum in layer {layer}", total, x[HookPoint("resid_post", layer)])


def _edits(lm: LanguageModel) -> None:
    """Zeros at an inner site make its sub-layer's output the same for every token; nothing else reaches it."""
    ids = torch.from_numpy(_ids(lm))
    for layer in lm.blocks.running:
        places = find_places(lm, layer)
        for inner, outer in READS.items():
            if inner not in places:
                continue
            rows = _without(lm, places[inner], places[outer], ids)
            if float((rows - rows[0]).norm()) > TOLERANCE * (1 + float(rows.norm())):
                raise _Differs(f"{outer}.{layer} depends on more than {inner}.{layer}")


def _without(lm: LanguageModel, inner: Place, outer: Place, ids: Tensor) -> Float[Tensor, "tokens d_model"]:
    """The activations at `outer` of a pass with zeros at `inner`."""
    outputs: list[Tensor] = []
    handles = [inner.watch(torch.zeros_like), outer.watch(lambda x: outputs.append(x.clone()))]
    with torch.no_grad():
        lm.body(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs[0].reshape(ids.numel(), -1)


def _joined(lm: LanguageModel) -> None:
    """A document that begins a context is read as it is alone: the model looks at no later token."""
    ids, harvester = _ids(lm), _harvester(lm)
    packed, alone = _harvested(harvester, ids), _harvested(harvester, ids[:, :DOCUMENT])
    for hook, x in alone.items():
        _expect_equal(f"{hook} of a document with others after it", packed[hook][:, :DOCUMENT], x)


def _separate(lm: LanguageModel) -> None:
    """Every document of a context is read as it is alone."""
    ids = _ids(lm)
    owners = np.broadcast_to(np.arange(LENGTH) >= DOCUMENT, ids.shape).astype(np.int64)
    packed, joined = _harvested(_harvester(lm, "separate"), ids, owners), _harvester(lm)
    for part in (slice(0, DOCUMENT), slice(DOCUMENT, LENGTH)):
        for hook, x in _harvested(joined, ids[:, part]).items():
            _expect_equal(f"{hook} of a packed document", packed[hook][:, part], x)


def _separate_or_refused(lm: LanguageModel) -> None:
    try:
        _separate(lm)
    except ConfigError as error:
        raise _Differs(REFUSED) from error


def _gradient(lm: LanguageModel) -> None:
    """Coefficients of the loss are harvested: finite, and not zero."""
    channel = Channel(HookPoint("resid_post", 0), "gradient")
    config = HarvestConfig(batch_contexts=CONTEXTS, compile=False)
    x = Harvester(lm, (channel,), config, "joined").harvest(_ids(lm), np.zeros((CONTEXTS, LENGTH), np.int64)).x[channel]
    if not (torch.isfinite(x).all() and x[:, :-1].norm() > 0):
        raise _Differs("gradients are zero or not finite")


def _index(lm: LanguageModel) -> None:
    """Promoted tokens are those whose logits the model's own pass raises most."""
    for site in ("resid_post", *OUTER):
        place = find_places(lm, 0).get(site)
        if place is None:
            continue
        hook = HookPoint(site, 0)
        rows = torch.randn(DIRECTIONS, place.width, generator=torch.Generator().manual_seed(1))
        rows /= rows.norm(dim=1, keepdim=True)
        promoted = token_logits(lm, hook, rows, PROMOTED).promoted
        with torch.no_grad():
            raised = _raised(lm, residual_directions(lm, hook, rows))
        _expect_equal(f"logits that {hook} promotes", raised.gather(1, promoted), raised.topk(PROMOTED, dim=1).values)


def _raised(lm: LanguageModel, directions: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows tokens"]:
    """The model's logits with directions as the stream after the last block, less those with zeros."""
    stream = torch.cat([directions, torch.zeros_like(directions[:1])])

    def put(_module: Any, _args: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple | list) else output).shape
        new = stream.reshape(len(stream), *first[1:]) if len(first) > 2 else stream
        return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

    handle = lm.blocks.last.register_forward_hook(put)
    try:
        logits = lm.model(input_ids=torch.full((len(stream), 1), 5), use_cache=False).logits[:, 0]
    finally:
        handle.remove()
    return (logits[:-1] - logits[-1:])[:, lm.scored_ids]


CHECKS: dict[str, Callable[[LanguageModel], None]] = {
    "activations": _activations,
    "sums": _sums,
    "edits": _edits,
    "joined": _joined,
    "separate": _separate_or_refused,
    "gradient": _gradient,
    "index": _index,
}


def figures(every: list[ModelChecks]) -> dict[str, Any]:
    """Versions, counts, and the checks of every class."""
    built = [checks for checks in every if not checks.cannot_build]
    causal = [checks for checks in built if not checks.reads_ahead]
    return {
        "transformers": version("transformers"),
        "torch": version("torch"),
        "classes": len(every),
        "built": len(built),
        "causal": len(causal),
        "passed": sum(checks.passes for checks in causal),
        "models": [asdict(checks) for checks in every],
    }


def table(every: list[ModelChecks]) -> str:
    """The checks as a Markdown table, a line for every class."""
    lines = ["| class | sites | separate packing | result |", "|---|---|---|---|"]
    for checks in every:
        separate = {"": "yes", REFUSED: "refused"}.get(checks.outcomes.get("separate", "-"), "-")
        lines.append(f"| `{checks.name}` | {_sites_said(checks)} | {separate} | {_result(checks)} |")
    return "\n".join(lines)


def _sites_said(checks: ModelChecks) -> str:
    if not checks.sites:
        return "-"
    lacking = [site for site in SITES if site not in checks.sites]
    partly = [site for site, count in checks.sites.items() if count < checks.n_layers]
    said = "all" if not lacking else ", ".join(site for site in SITES if site in checks.sites)
    if len(lacking) == 1:
        said = f"all but {lacking[0]}"
    return f"{said} ({', '.join(partly)} in some layers)" if partly else said


def _result(checks: ModelChecks) -> str:
    if checks.cannot_build:
        return f"cannot be built: {_cell(checks.cannot_build)}"
    if checks.reads_ahead:
        return "refused: later tokens change its predictions"
    failures = [f"{title}: {_cell(reason)}" for title, reason in checks.outcomes.items() if reason not in ("", REFUSED)]
    return "; ".join(failures) or "passes"


def _cell(text: str) -> str:
    text = text.replace("|", "/").replace("\n", " ")
    return text if len(text) <= 160 else f"{text[:160]} ..."
