"""Bodies about what commands such as `sae contrast` found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

NAME = Field(description="Name of the finding.", examples=["contrast"])
SYSTEM = Field(description="The command that made it.", examples=["contrast"])
TITLE = Field(description="What it is about.", examples=["news.txt against reviews.txt"])
SUMMARY = Field(description="What came out.", examples=["31 features fire on more texts of A, 12 on more of B."])


class FindingItem(BaseModel):
    name: str = NAME
    system: str = SYSTEM
    title: str = TITLE
    summary: str = SUMMARY


class FindingFigure(BaseModel):
    name: str = Field(description="What is measured.", examples=["loss on A without them"])
    value: float | None = Field(description="The number.", examples=[0.0104])
    low: float | None = Field(description="Lower end of the 95 % interval.", examples=[0.0072])
    high: float | None = Field(description="Upper end of the 95 % interval.", examples=[0.0137])
    meaning: str = Field(description="The number in words.", examples=["nats that texts of A lose"])


class FindingColumn(BaseModel):
    name: str = Field(description="Heading.", examples=["feature"])
    kind: Literal["text", "number", "feature", "features"] = Field(
        description="What its cells hold; `features`: ids with spaces between them.", examples=["feature"]
    )


class FindingTable(BaseModel):
    title: str = Field(description="Heading of the table.", examples=["Features that fire on more texts of A"])
    is_shaded: bool = Field(
        description="Whether all its numbers are of one kind, to be coloured by size.", examples=[False]
    )
    columns: list[FindingColumn] = Field(description="Its columns, in order.")
    rows: list[list[str | int | float | None]] = Field(description="Its rows, a cell per column.")


class FindingAbout(BaseModel):
    """The rows of one table of a finding that name a feature."""

    name: str = NAME
    system: str = SYSTEM
    title: str = TITLE
    table: str = Field(description="Heading of the table.", examples=["Features that fire on more texts of A"])
    columns: list[FindingColumn] = Field(description="Its columns, in order.")
    rows: list[list[str | int | float | None]] = Field(description="The rows that name the feature.")


class AttributionItem(BaseModel):
    """Where one firing comes from: the tokens of its context up to there, and what each and every head contributes."""

    name: str = NAME
    feature: int = Field(description="The feature.", examples=[17])
    rank: int = Field(description="The firing's place among the feature's strongest.", examples=[0])
    document: int = Field(description="The document of the firing.", examples=[12])
    document_name: str = Field(description="Its name.", examples=["Alan Turing"])
    position: int = Field(description="Tokens of the document before the firing.", examples=[340])
    act: float = Field(description="The activation.", examples=[4.31])
    token_ids: list[int] = Field(description="Ids of the tokens, the last is the one on which it fires.")
    texts: list[str] = Field(description="Their texts.")
    by_source: list[float] = Field(description="What each token contributes to the pre-activation, biases left out.")
    by_head: list[float] = Field(description="What each head contributes; the sum is the same.")


class FindingDetail(BaseModel):
    name: str = NAME
    is_current: bool = Field(description="Whether the weights are still those it speaks of.", examples=[True])
    system: str = SYSTEM
    title: str = TITLE
    summary: str = SUMMARY
    weights_sha256: str = Field(description="SHA-256 of the weights that it speaks of.")
    settings: dict[str, str | int | float | None] = Field(
        description="Settings and inputs by name.", examples=[{"a": "news.txt", "texts": 200}]
    )
    figures: list[FindingFigure] = Field(description="Single numbers.")
    tables: list[FindingTable] = Field(description="Tables.")
