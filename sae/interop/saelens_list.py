"""The list of published dictionaries that SAELens brings along, read where it is installed: id to repository and layout.

It is read as text, release by release, because parsing all of its 43,000 lines takes seconds. No code of SAELens runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sae.interop.families import Release, release_by_rule
from sae.interop.hook_names import our_hook

# SAELens' converters to our formats; a layout that is not here is told by its converter's name.
FORMATS = {
    None: "saelens", "gemma_2": "gemma_npz", "gemma_2_transcoder": "gemma_npz", "gemma_3": "gemma_scope_2",
    "qwen_scope": "qwen_scope", "llama_scope": "llama_scope", "dictionary_learning_1": "dictionary_learning",
    "goodfire": "goodfire", "mwhanna_transcoder": "transcoder_layer", "sparsify": "sparsify",
    "llama_scope_r1_distill": "llamascopium", "temporal": "temporal",
}  # fmt: skip
FILES = {
    "gemma_npz": ("{path}",), "qwen_scope": ("{path}",), "goodfire": ("{path}",),
    "transcoder_layer": ("{path}", "config.yaml"),
    "llamascopium": ("{path}/config.json", "{path}/sae_weights.safetensors"),
    "llama_scope": ("{path}/hyperparams.json", "{path}/checkpoints/final.safetensors"),
}  # fmt: skip


@lru_cache(1)
def _text() -> str:
    spec = find_spec("sae_lens")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    path = folder / "pretrained_saes.yaml" if folder else None
    return path.read_text("utf-8") if path and path.exists() else ""


@lru_cache(1)
def _places() -> dict[str, tuple[int, int]]:
    """The part of the text that every release takes."""
    starts = [(match[1], match.start()) for match in re.finditer(r"^([^\s#][^:\n]*):\s*$", _text(), re.MULTILINE)]
    ends = [*(start for _, start in starts[1:]), len(_text())][: len(starts)]
    return {name: (start, end) for (name, start), end in zip(starts, ends, strict=True)}


def release_names() -> list[str]:
    """All releases of the list; empty without SAELens."""
    return list(_places())


@lru_cache(8)
def releases_of(name: str) -> dict[str, Release]:
    """The dictionaries of one release of the list, by their ids in it."""
    start, end = _places()[name]
    content: dict[str, Any] = yaml.load(_text()[start:end], yaml.CSafeLoader)[name]  # nosec B506
    return {str(entry["id"]): _release(name, content, entry) for entry in content.get("saes", ())}


def _release(name: str, content: dict[str, Any], entry: dict[str, Any]) -> Release:
    converter = content.get("conversion_func")
    overrides = {**(content.get("config_overrides") or {}), **(entry.get("config_overrides") or {})}
    repo, place, layout = content["repo_id"], str(entry["path"]), str(converter or "saelens")
    form = FORMATS.get(converter)
    if "clt" in place.split("/")[0]:
        form, layout = None, "cross-layer transcoder"

    by_rule = release_by_rule(repo, place)
    facts = dict(by_rule.facts) if by_rule else {}
    facts |= {"model": content["model"]} if "model" in content and "model" not in facts else {}
    if hook := our_hook(str(overrides.get("hook_name", ""))) or (our_hook(entry["id"]) if form == "temporal" else None):
        facts["hook"] = hook
    if isinstance(entry.get("l0"), int | float):
        facts["l0"] = float(entry["l0"])

    path = f"{place}/params.npz" if form == "gemma_npz" else place
    files = tuple(part.format(path=path) for part in FILES.get(form or "", ("{path}/*",)))
    return Release(
        f"{name}/{entry['id']}",
        repo,
        path,
        files,
        format=form,
        layout=layout,
        facts=facts,
        licence=by_rule.licence if by_rule else None,
    )


def release_called(text: str) -> Release | None:
    """The dictionary "release/id" of the list; None if it has none."""
    for name in _places():
        if text.startswith(f"{name}/") and (release := releases_of(name).get(text.removeprefix(f"{name}/"))):
            return release
    return None


def all_releases() -> Iterator[Release]:
    """Every dictionary of the list."""
    for name in _places():
        yield from releases_of(name).values()
