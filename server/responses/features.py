"""Bodies about features: tables, one feature, search, the map."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.responses.common import ACT, CONCEPT, DOCUMENT, DOCUMENT_NAME, FEATURE, FLOOR, LABEL, NAME


class FeatureItem(BaseModel):
    feature: int = FEATURE
    density: float = Field(description="Share of tokens on which the feature fires.", examples=[0.0021])
    n_fired: int = Field(description="Tokens on which it fires.", examples=[1470])
    mean_act: float = Field(description="Mean activation where it fires.", examples=[8.4])
    max_act: float = Field(description="Largest activation.", examples=[51.82])
    n_documents: int = Field(description="Documents in which it fires.", examples=[310])
    label: str | None = LABEL
    explainer: str | None = Field(description="Explainer that the label comes from.", examples=["token"])
    score: float | None = Field(
        description="Held-out balanced accuracy: of the label's rule over tokens, of a judge's text by detection; chance is 0.5.",
        examples=[0.93],
    )
    low: float | None = Field(description="Lower end of the score's 95 % interval.", examples=[0.88])
    high: float | None = Field(description="Upper end of the score's 95 % interval.", examples=[0.97])
    n_pos: int | None = Field(description="Firings in test documents that the score was measured on.", examples=[212])
    f2: float | None = Field(description="Held-out F2 of the label's rule; null without a rule.", examples=[0.61])
    strong_share: float | None = Field(
        description="Share of the firings that labels and scores are about: at least a third of the maximum.",
        examples=[0.28],
    )


class Snippet(BaseModel):
    before: str = Field(description="Text before the token with the largest activation.", examples=["the city of"])
    peak: str = Field(description="That token.", examples=[" Paris"])
    after: str = Field(description="Text after it.", examples=[" in France"])


class TableItem(FeatureItem):
    snippet: Snippet | None = Field(default=None, description="Its strongest context, if `snippets` asks for it.")


class FeaturePage(BaseModel):
    items: list[TableItem] = Field(description="Rows of this page.")
    floor: float | None = FLOOR
    total: int = Field(description="Features that pass the filter.", examples=[4087])
    limit: int = Field(description="Rows of a page.", examples=[50])
    offset: int = Field(description="Rows before this page; those up to `after` where that is given.", examples=[0])
    next_after: int | None = Field(
        description="`after` of the next page: the last feature of this one. Null on the last page.", examples=[1500]
    )


class ExplainerItem(BaseModel):
    explainer: str = Field(description="Name of the explainer.", examples=["bigram"])
    features: int = Field(description="Features whose label comes from this explainer.", examples=[719])


class ExplainerList(BaseModel):
    items: list[ExplainerItem] = Field(description="The one with most labels first.")


class Scatter(BaseModel):
    features: list[int] = Field(description="Features with a score, in a sample of at most 20,000.")
    log10_density: list[float] = Field(description="Decimal logarithm of the density of each.")
    low: list[float] = Field(description="Lower end of the 95 % interval of each score.")


class TokenWeight(BaseModel):
    token: int = Field(description="Token id.", examples=[7042])
    text: str = Field(description="Its text.", examples=[" Paris"])
    logit: float = Field(description="Logit that the direction adds, less the mean token's.", examples=[3.1])


class Neighbour(BaseModel):
    feature: int = FEATURE
    cosine: float = Field(description="Cosine of both.", examples=[0.41])
    label: str | None = LABEL


class ScoreItem(BaseModel):
    scorer: str = Field(description="Name of the scorer.", examples=["rule"])
    metric: str = Field(description="What is measured.", examples=["balanced_accuracy"])
    value: float | None = Field(description="The figure; null if there was nothing to count.", examples=[0.93])
    low: float | None = Field(description="Lower end of the 95 % interval.", examples=[0.88])
    high: float | None = Field(description="Upper end of the 95 % interval.", examples=[0.97])
    chance: float = Field(description="What a guess reaches.", examples=[0.5])
    baseline: float | None = Field(
        description="What the lexical baseline reaches; value - baseline is the lift.", examples=[0.9]
    )
    n_pos: int = Field(description="Positive cases.", examples=[212])
    n_neg: int = Field(description="Negative cases.", examples=[349000])
    n_failed: int = Field(description="Judge answers that could not be read; they count as wrong.", examples=[0])
    seed: int = Field(description="Seed of what was drawn.", examples=[0])
    split: str = Field(description="How documents were divided into the explain part and the test part.")
    judge: str | None = Field(description="Model that judged; null if none did.", examples=[None])
    prompt: str | None = Field(description="First 16 hex digits of the SHA-256 of the judge's instructions.")


class ExplanationItem(BaseModel):
    explainer: str = Field(description="Name of the explainer.", examples=["token"])
    text: str = Field(description="What it says of the feature.", examples=["token “torch”"])
    chosen: bool = Field(description="Whether it is the feature's label.", examples=[True])
    scores: list[ScoreItem] = Field(description="Its scores on held-out documents.")


class PositionItem(BaseModel):
    first: int = Field(description="First place of a range of places in the document.", examples=[4])
    firings: int = Field(description="Strong firings there.", examples=[31])


class FormatItem(BaseModel):
    format: str = Field(description="How a token looks.", examples=["capitalised words"])
    firings: int = Field(description="Strong firings on such tokens.", examples=[120])


class FeatureDocument(BaseModel):
    document: int = DOCUMENT
    name: str = DOCUMENT_NAME
    mean_act: float = Field(description="Mean activation over all of its tokens.", examples=[0.8])
    max_act: float = ACT


class FeatureConcept(BaseModel):
    concept: int = CONCEPT
    name: str = NAME


class FeatureDetail(FeatureItem):
    histogram: list[int] = Field(description="Firings per range of activation.")
    histogram_log2_edges: list[float] = Field(description="Edges of these ranges, binary logarithms.")
    promoted: list[TokenWeight] = Field(description="Tokens that its direction makes likelier, the strongest first.")
    suppressed: list[TokenWeight] = Field(description="Tokens that it makes less likely, the strongest first.")
    neighbours: list[Neighbour] = Field(description="Nearest features by cosine of decoder rows.")
    coactive: list[Neighbour] = Field(description="Features that fire on the same tokens, by cosine of firing.")
    positions: list[PositionItem] = Field(description="Where in documents it fires strongly.")
    formats: list[FormatItem] = Field(description="On what kinds of token it fires strongly.")
    documents: list[FeatureDocument] = Field(
        description="Documents in which it fires most for their length, ten at most."
    )
    concepts: list[FeatureConcept] = Field(description="Concepts that it belongs to, the widest first.")
    explanations: list[ExplanationItem] = Field(description="All explanations, its label first.")
    scores: list[ScoreItem] = Field(description="Scores of the feature itself, whatever its label.")
    floor: float | None = FLOOR


class MapGroup(BaseModel):
    concept: int = CONCEPT
    name: str = NAME


class FeatureMap(BaseModel):
    features: list[int] = Field(description="Features that fire, in a sample of at most 200,000.")
    steps: int = Field(description="Steps of each side of the map.", examples=[4095])
    x: list[int] = Field(description="Steps from the left of each.")
    y: list[int] = Field(description="Steps from the bottom of each.")
    group: list[int] = Field(description="Index into `groups`; -1 for features without one.")
    low: list[float | None] = Field(description="Lower end of the 95 % interval of each score.")
    log10_density: list[float] = Field(description="Decimal logarithm of the density of each.")
    groups: list[MapGroup] = Field(description="Concepts of the first level, the largest first.")


class SearchHit(FeatureItem):
    kind: str = Field(description="Kind of search that found it.", examples=["promoted"])
    why: str = Field(
        description="Why it was found, for people.",
        examples=["promotes “ Paris”, 6.1 deviations above its other tokens"],
    )
    times: int | None = Field(
        description="Strong firings on (before, after) the token, for token searches.", examples=[42]
    )


class SearchResult(BaseModel):
    query: str = Field(description="What was searched.", examples=["paris"])
    kind: str = Field(description="How.", examples=["all"])
    items: list[SearchHit] = Field(description="The best first; of `all` kinds, the best of each kind first.")
    total: int = Field(description="Features found in all.", examples=[31])
    notes: list[str] = Field(description="What to know of this result: a corrected spelling, why nothing was found.")
    floor: float | None = FLOOR
