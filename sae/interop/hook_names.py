"""Hook points in the names of TransformerLens, which SAELens, circuit-tracer and Llamascopium use too."""

from __future__ import annotations

import re

SITES = {
    "resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z", "mlp_out": "hook_mlp_out", "mlp_hidden": "mlp.hook_post",
    "mlp_in": "mlp.hook_in",
}  # fmt: skip
# More names of the same places in TransformerLens 3. Not `ln2.hook_normalized`, which comes before the norm's own
# weights, nor `mlp.hook_out` and `attn.hook_out`: some models normalise these before they add them to the stream.
SYNONYMS = {
    "hook_in": "resid_pre", "hook_out": "resid_post", "attn.o.hook_in": "attn_z", "mlp.out.hook_in": "mlp_hidden",
}  # fmt: skip


def hook_name(hook: str) -> str:
    """`blocks.8.hook_resid_post` for `resid_post.8`."""
    site, _, layer = hook.partition(".")
    return f"blocks.{layer}.{SITES[site]}"


def our_hook(name: str) -> str | None:
    """The inverse of `hook_name`; None for a hook point that saedex does not know."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    names = {name: site for site, name in SITES.items()} | SYNONYMS
    site = names.get(match[2]) if match else None
    return None if match is None or site is None else f"{site}.{match[1]}"
