"""Releases whose ids follow a rule: from a repository of the hub and a place in it to layout, model and hook point."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WIDTHS = {
    "google/gemma-2-2b": 2304, "google/gemma-2-2b-it": 2304, "google/gemma-2-9b": 3584, "google/gemma-2-9b-it": 3584,
    "google/gemma-2-27b": 4608, "google/gemma-2-27b-it": 4608, "google/gemma-3-270m": 640, "google/gemma-3-270m-it": 640,
    "google/gemma-3-1b-pt": 1152, "google/gemma-3-1b-it": 1152, "google/gemma-3-4b-pt": 2560, "google/gemma-3-4b-it": 2560,
    "google/gemma-3-12b-pt": 3840, "google/gemma-3-12b-it": 3840, "google/gemma-3-27b-pt": 5376,
    "google/gemma-3-27b-it": 5376, "meta-llama/Llama-3.1-8B": 4096,
}  # fmt: skip
EXAMPLES = (
    "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
    "gemma-scope-2-270m-pt-resid_post/layer_9_width_16k_l0_small",
    "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer14.sae.pt",
    "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x",
    "mwhanna/qwen3-0.6b-transcoders-lowl0/layer_14.safetensors",
)
CC_BY, GEMMA = "CC BY 4.0", "its model has Gemma's terms of use"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """One published dictionary: where its files are, how they are laid out, and what its names say of it.

    `path` is what the format reads, inside the repository; `files` are all that it needs, as globs. `facts` hold model,
    hook, target, l0 and d_sae, as far as the names say them.
    """

    id: str
    repo: str
    path: str
    files: tuple[str, ...]
    format: str | None  # None: a layout that saedex does not read, called `layout`
    layout: str
    facts: Facts = field(default_factory=dict)
    licence: str | None = None

    @property
    def searched(self) -> str:
        """What a search looks at, in small letters."""
        return " ".join((self.id, self.repo, self.layout, *map(str, self.facts.values()))).lower()

    def described(self) -> list[str]:
        """What is known of it, in words: model, hook point, width, l0, size of the weights, licence."""
        facts = self.facts
        hook = " to ".join(str(facts[key]) for key in ("hook", "target") if key in facts)
        hook = " and ".join((hook, *facts.get("more_hooks", ())))
        words = [str(facts.get("model", "")), hook]
        words += [f"{facts['d_sae']:,} latents"] if "d_sae" in facts else []
        words += [f"l0 {facts['l0']:g}"] if "l0" in facts else []
        if size := self.n_bytes:
            words.append(f"{size / 1e9:.2f} GB")
        words.append(self.licence or ("" if self.format else f"not read here: {self.layout}"))
        return [word for word in words if word]

    @property
    def n_bytes(self) -> int | None:
        """The bytes of its two matrices in float32, where the width of its model is known."""
        width = WIDTHS.get(str(self.facts.get("model")))
        width = width and width * (1 + len(self.facts.get("more_hooks", ())))
        return 8 * width * self.facts["d_sae"] if width and "d_sae" in self.facts else None


@dataclass(frozen=True)
class Family:
    """Repositories whose names match `repo`, with dictionaries at places that match `place`."""

    format: str
    repo: str
    place: str
    facts: Callable[[re.Match[str], re.Match[str]], Facts]
    files: tuple[str, ...] = ("{path}/*",)
    path: str = "{place}"
    licence: str | None = None
    ids: tuple[tuple[str, str], ...] = ()  # (pattern of a short id, what it stands for), such as SAELens writes them

    def spelled_out(self, text: str) -> str:
        """A short id as repository and place; any other text as it is."""
        for pattern, whole in self.ids:
            if match := re.fullmatch(pattern, text):
                return match.expand(whole)
        return text

    def release(self, repo: str, place: str) -> Release | None:
        """The release at a place of a repository; None if it is none of this family."""
        in_repo, in_place = re.fullmatch(self.repo, repo), re.fullmatch(self.place, place)
        if not in_repo or not in_place:
            return None
        path = self.path.format(place=place)
        files = tuple(name.format(path=path, place=place) for name in self.files)
        facts = self.facts(in_repo, in_place)
        return Release(
            f"{repo}/{place}",
            repo,
            path,
            files,
            format=self.format,
            layout=self.format,
            facts=facts,
            licence=self.licence,
        )


def thousands(text: str) -> int:
    """The power of two that is meant: 16384 for 16k, 131072 for 131k, 1048576 for 1m."""
    return 1 << round(math.log2(int(text[:-1]) * (1e6 if text[-1].lower() == "m" else 1e3)))


GEMMA_SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}


def _gemma_scope(repo: re.Match[str], place: re.Match[str]) -> Facts:
    size, kind, site = repo.groups()
    facts: Facts = {"model": f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}", "l0": float(place[3])}
    facts["d_sae"] = thousands(place[2])
    if site == "transcoders":
        return facts | {"hook": f"mlp_in.{place[1]}", "target": f"mlp_out.{place[1]}"}
    return facts | {"hook": f"{GEMMA_SITES[site]}.{place[1]}"}


GEMMA_2_SITES = {"resid_post": "resid_post", "attn_out": "attn_z", "mlp_out": "mlp_out"}


def _gemma_scope_embedding(repo: re.Match[str], place: re.Match[str]) -> Facts:
    """The embedding before the model multiplies it by sqrt(d_model); what layer 0 reads is after that."""
    model = f"google/gemma-2-{repo[1]}"
    scale = WIDTHS[model] ** -0.5
    return {"model": model, "hook": "resid_pre.0", "d_sae": thousands(place[1]), "l0": float(place[2]), "scale": scale}


def _gemma_3(size: str, kind: str) -> str:
    """The repository of the model, of which that of 270m has no -pt."""
    return f"google/gemma-3-{size}" if size == "270m" and kind == "pt" else f"google/gemma-3-{size}-{kind}"


def _gemma_scope_2(repo: re.Match[str], place: re.Match[str]) -> Facts:
    site, layer = place[1], place[2]
    facts: Facts = {"model": _gemma_3(*repo.groups()), "d_sae": thousands(place[3])}
    if site == "transcoder":
        return facts | {"hook": f"mlp_in.{layer}", "target": f"mlp_out.{layer}"}
    return facts | {"hook": f"{GEMMA_2_SITES[site]}.{layer}"}


def _crosscoder(repo: re.Match[str], place: re.Match[str]) -> Facts:
    hook, *more_hooks = (f"resid_post.{layer}" for layer in place[1].split("_"))
    model = _gemma_3(*repo.groups())
    return {"model": model, "d_sae": thousands(place[2]), "hook": hook, "more_hooks": more_hooks}


def _qwen_scope(repo: re.Match[str], place: re.Match[str]) -> Facts:
    hook = f"resid_post.{place[1]}"
    return {"model": f"Qwen/{repo[1]}", "hook": hook, "d_sae": int(repo[2]) << 10, "l0": float(repo[3])}


LLAMA_SITES = {"R": "resid_post", "A": "attn_out", "M": "mlp_out"}


def _llama_scope(repo: re.Match[str], place: re.Match[str]) -> Facts:
    facts: Facts = {"model": "meta-llama/Llama-3.1-8B", "d_sae": 4096 * int(place[3])}
    if place[2] == "TC":
        return facts | {"hook": f"mlp_in.{place[1]}", "target": f"mlp_out.{place[1]}"}
    return facts | {"hook": f"{LLAMA_SITES[place[2]]}.{place[1]}"}


TEMPORAL_MODELS = {"gemma-2-2B": "google/gemma-2-2b", "llama-3.1-8B": "meta-llama/Llama-3.1-8B"}
FAMILIES = (
    Family(
        "gemma_npz",
        r"google/gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)",
        r"layer_(\d+)/width_(\d+[km])/(?:canonical|average_l0_(\d+))",
        _gemma_scope,
        files=("{path}",),
        path="{place}/params.npz",
        licence=f"{CC_BY}; {GEMMA}",
        ids=((r"(gemma-scope-\d+b-(?:pt|it)-(?:res|mlp|att|transcoders)/.+)", r"google/\1"),),
    ),
    Family(
        "gemma_npz",
        r"google/gemma-scope-(2b|9b|27b)-pt-res",
        r"embedding/width_(\d+[km])/average_l0_(\d+)",
        _gemma_scope_embedding,
        files=("{path}",),
        path="{place}/params.npz",
        licence=f"{CC_BY}; {GEMMA}",
        ids=((r"(gemma-scope-\d+b-pt-res/embedding/.+)", r"google/\1"),),
    ),
    Family(
        "gemma_scope_2",
        r"google/gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)",
        r"(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_width_(\d+[km])_l0_\w+",
        _gemma_scope_2,
        licence=f"{CC_BY}; {GEMMA}",
        ids=(
            (
                r"(gemma-scope-2-\w+-(?:pt|it))-((?:resid_post|attn_out|mlp_out|transcoder)(?:_all)?/.+)",
                r"google/\1/\2",
            ),
        ),
    ),
    Family(
        "gemma_scope_2",
        r"google/gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)",
        r"crosscoder/layer_(\d+(?:_\d+)+)_width_(\d+[km])_l0_\w+",
        _crosscoder,
        licence=f"{CC_BY}; {GEMMA}",
        ids=((r"(gemma-scope-2-\w+-(?:pt|it))-(crosscoder/.+)", r"google/\1/\2"),),
    ),
    Family(
        "qwen_scope",
        r"Qwen/SAE-Res-(.+)-W(\d+)K-L0_(\d+)",
        r"layer(\d+)\.sae\.pt",
        _qwen_scope,
        files=("{path}",),
        licence="Qwen's own, which forbids some uses",
    ),
    Family(
        "llama_scope",
        r"(?:fnlp|OpenMOSS-Team)/Llama3_1-8B-Base-L\w+-\d+x",
        r"Llama3_1-8B-Base-L(\d+)(R|A|M|TC)-(\d+)x",
        _llama_scope,
        files=("{path}/hyperparams.json", "{path}/checkpoints/final.safetensors"),
    ),
    Family(
        "transcoder_layer",
        r"(?:mwhanna|mntss)/.*(?:transcoder|plt).*",
        r"layer_(\d+)\.safetensors",
        lambda _, __: {},  # config.yaml beside it says all
        files=("{path}", "config.yaml"),
    ),
    Family(
        "temporal",
        r"canrager/temporalSAEs",
        r"(gemma-2-2B|llama-3\.1-8B)/layer_(\d+)/temporal",
        lambda _, place: {"model": TEMPORAL_MODELS[place[1]], "hook": f"resid_post.{place[2]}"},
    ),
    Family(
        "goodfire",
        r"Goodfire/Llama-.+-SAE-l\d+",
        r".+-SAE-l(\d+)\.pth?",
        lambda _, place: {"hook": f"resid_post.{place[1]}"},
        files=("{path}",),
    ),
)


def release_of_id(text: str) -> Release | None:
    """The release that an id names, OWNER/REPOSITORY/PLACE or a short one; None if no family's rule knows it."""
    for family in FAMILIES:
        parts = family.spelled_out(text).split("/")
        if len(parts) > 2 and (release := family.release("/".join(parts[:2]), "/".join(parts[2:]))):
            return release
    return None


def release_by_rule(repo: str, place: str) -> Release | None:
    """The release at a place of a repository by the naming rules of all families; None if none knows it."""
    return next((release for family in FAMILIES if (release := family.release(repo, place))), None)
