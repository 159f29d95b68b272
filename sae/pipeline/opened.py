"""The config's section `opened`: a dictionary that comes from elsewhere, in place of training."""

from __future__ import annotations

from pydantic import Field

from sae.foundation.section import Count, Section


class OpenedConfig(Section):
    """What `sae open` was asked to open. It is written by that command; the dictionary lies in the run folder."""

    what: str = Field(min_length=1, description="The id, repository or path that was opened.")
    text: str = Field(min_length=1, description="The text, as pages name it.")
    format: str = Field(description="Layout of its files; saedex: a dictionary folder.")
    weights_sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="Hash of the weights as the dictionary's card has it."
    )
    said_l0: float | None = Field(
        default=None, gt=0, description="Latents per token that its release states; none: it states none."
    )
    first_tokens: Count = Field(
        default=32_768,
        ge=2,
        description="Tokens that are indexed and labelled first, so that there is something to see.",
    )
    accept_misfit: bool = Field(
        default=False, description="Go on although the dictionary explains next to nothing of the activations."
    )
