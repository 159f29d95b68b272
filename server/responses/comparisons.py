"""Bodies about two dictionaries side by side."""

from __future__ import annotations

from pydantic import BaseModel, Field

OTHER = Field(description="Id of the other dictionary.", examples=["quickstart-seed1.resid-4096"])
COUNTS = Field(description="Features of each kind.", examples=[{"matched": 2012, "alone": 800}])
TOKENS = Field(description="Tokens on which both fired; 0 if directions alone were compared.", examples=[20000])


class ComparisonItem(BaseModel):
    other: str = OTHER
    is_served: bool = Field(description="Whether the other one is here too.", examples=[True])
    counts: dict[str, int] = COUNTS
    tokens: int = TOKENS


class ComparisonTwin(BaseModel):
    dictionary: str = Field(
        description="A dictionary like the first one, of another seed.", examples=["seed1.resid-4096"]
    )
    matched: float = Field(description="Share of the first one's features that are matched in it.", examples=[0.55])


class ComparisonSide(BaseModel):
    dictionary: str = Field(description="Id of the dictionary.", examples=["quickstart.resid-4096"])
    counts: dict[str, int] = COUNTS
    nearest: list[int] = Field(
        description="By feature: the other one's feature with the largest cosine of decoder rows."
    )
    cosine: list[float] = Field(description="By feature: that cosine.")
    correlation: list[float | None] = Field(description="By feature: correlation of both activations over the tokens.")
    kind: list[int] = Field(description="By feature: index into `kinds`.")


class ComparisonDetail(BaseModel):
    is_served: bool = Field(description="Whether the other one is here too.", examples=[True])
    is_current: bool = Field(description="Whether the weights are still those that were compared.", examples=[True])
    kinds: list[str] = Field(description="matched, split, merged, near, alone, dead: see docs/explorer.md.")
    found: float = Field(description="Cosine from which on a feature is found again.", examples=[0.7])
    random_cosine: float = Field(description="Cosine that the best match of 95 % of random directions stays below.")
    random_correlation: float | None = Field(description="Correlation that 95 % of pairs drawn at random stay below.")
    tokens: int = TOKENS
    twin: ComparisonTwin | None = Field(description="What seeds alone do; null if no twin was given.")
    this: ComparisonSide = Field(description="The dictionary of the address.")
    other: ComparisonSide = Field(description="The other one.")
