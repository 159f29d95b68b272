"""The bodies of the API, in one place: the OpenAPI document and the explorer's types follow from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from feature_store.records import Concept, Feature, FeatureRow, Window
from feature_store.store import Store


class ErrorInfo(BaseModel):
    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people: what was wrong and what is allowed.")


class ErrorBody(BaseModel):
    error: ErrorInfo


class DictionarySummary(BaseModel):
    id: str
    name: str
    run: str
    model: str
    hook: str
    architecture: str
    d_sae: int
    k: int | None
    generation: str = Field(description="Changes when new evidence or labels are published.")
    features: int
    alive: int
    labelled: int
    fvu: float | None
    l0: float | None
    loss_recovered: float | None = Field(description="Against mean ablation.")


class DictionaryDetail(DictionarySummary):
    card: dict[str, Any]
    metrics: dict[str, Any]
    labels: dict[str, Any]
    densities_log10_edges: list[float]
    densities_features: list[int]
    training: list[dict[str, Any]]


class FeatureItem(BaseModel):
    feature: int
    density: float = Field(description="Share of tokens on which the feature fires.")
    n_fired: int
    mean_act: float
    max_act: float
    n_documents: int
    label: str | None
    explainer: str | None
    score: float | None = Field(
        description="Held-out balanced accuracy: of the label's rule over tokens, of a judge's text by detection; chance is 0.5."
    )
    low: float | None = Field(description="Lower end of the score's 95 % interval.")
    high: float | None = Field(description="Upper end of the score's 95 % interval.")
    n_pos: int | None = Field(description="Firings in test documents that the score was measured on.")
    f2: float | None = Field(description="Held-out F2 of the label's rule; null without a rule.")
    strong_share: float | None = Field(
        description="Share of the firings that labels and scores are about: at least a third of the maximum."
    )


class FeaturePage(BaseModel):
    items: list[FeatureItem]
    floor: float | None = Field(
        description="F2 that 95 % of the labels of random directions do not exceed; a label at or below it is weak."
    )
    total: int
    limit: int
    offset: int


class ExplainerItem(BaseModel):
    explainer: str
    features: int = Field(description="Features whose label comes from this explainer.")


class ExplainerList(BaseModel):
    items: list[ExplainerItem]


class TokenWeight(BaseModel):
    token: int
    text: str
    logit: float


class Neighbour(BaseModel):
    feature: int
    cosine: float
    label: str | None


class ScoreItem(BaseModel):
    scorer: str
    metric: str
    value: float | None
    low: float | None = Field(description="Lower end of the 95 % interval.")
    high: float | None = Field(description="Upper end of the 95 % interval.")
    chance: float
    baseline: float | None = Field(description="What the lexical baseline reaches; value - baseline is the lift.")
    n_pos: int
    n_neg: int
    n_failed: int = Field(description="Judge answers that could not be read; they count as wrong.")
    seed: int
    split: str = Field(description="How documents were divided into the explain part and the test part.")
    judge: str | None = Field(description="Model that judged; null if none did.")
    prompt: str | None = Field(description="First 16 hex digits of the SHA-256 of the judge's instructions.")


class ExplanationItem(BaseModel):
    explainer: str
    text: str
    chosen: bool
    scores: list[ScoreItem]


class FeatureDetail(FeatureItem):
    histogram: list[int] = Field(description="Firings per activation bin.")
    histogram_log2_edges: list[float]
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    neighbours: list[Neighbour]
    explanations: list[ExplanationItem]
    scores: list[ScoreItem] = Field(description="Scores of the feature itself, whatever its label.")
    floor: float | None = Field(
        description="F2 that 95 % of the labels of random directions do not exceed; null if none were labelled."
    )


class WindowToken(BaseModel):
    token: int
    text: str
    act: float


class ContextItem(BaseModel):
    group: str = Field(description="top: the strongest; stratum: sampled from one range of activation.")
    rank: int
    stratum: int
    document: int
    document_name: str
    peak: int
    copies: int = Field(description="How often this text occurred while it was in the list.")
    percentile: float = Field(description="Share of the feature's firings that are weaker than this peak.")
    inclusion: float = Field(description="Probability that a context of this stratum was kept.")
    tokens: list[WindowToken]


class ContextList(BaseModel):
    feature: int
    max_act: float
    items: list[ContextItem]


class SearchHit(FeatureItem):
    times: int | None = Field(description="Strong firings on (or before) the token, for token searches.")


class SearchResult(BaseModel):
    query: str
    kind: str
    items: list[SearchHit]


class ConceptMember(BaseModel):
    feature: int
    label: str | None


class ConceptItem(BaseModel):
    concept: int
    parent: int | None = Field(description="The concept that this one is a part of; null on the first level.")
    name: str = Field(description="Words that occur in its members' labels more often than in others.")
    coverage: float = Field(description="Share of members whose label holds a word of the name.")
    purity: float = Field(description="Share of the members' affinity that stays inside the group.")
    features: list[ConceptMember]


class ConceptList(BaseModel):
    features_grouped: int
    items: list[ConceptItem]


class DocumentFeature(BaseModel):
    feature: int
    mean_act: float
    max_act: float


class DocumentDetail(BaseModel):
    document: int
    name: str
    features: list[DocumentFeature]


class DownloadItem(BaseModel):
    name: str
    size_bytes: int
    sha256: str | None = Field(description="null for dictionary.zip, which is put together while it is sent.")
    url: str


class DamageItem(BaseModel):
    id: str
    problem: str = Field(description="What is wrong, and with which file.")


def item(row: FeatureRow) -> dict[str, Any]:
    """`FeatureItem` of a row."""
    return asdict(row)


def detail(store: Store, feature: Feature, labels: dict[int, str]) -> dict[str, Any]:
    """`FeatureDetail` of a feature; `labels` name its neighbours."""

    def weights(pairs: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": t, "text": store.shown(t), "logit": v} for t, v in pairs]

    return item(feature.row) | {
        "histogram": feature.histogram,
        "histogram_log2_edges": feature.histogram_log2_edges,
        "promoted": weights(feature.promoted),
        "suppressed": weights(feature.suppressed),
        "neighbours": [{"feature": f, "cosine": c, "label": labels.get(f)} for f, c in feature.neighbours],
        "explanations": [asdict(e) for e in feature.explanations],
        "scores": [asdict(s) for s in feature.scores],
    }


def concept(record: Concept, labels: dict[int, str]) -> dict[str, Any]:
    """`ConceptItem` of a concept; `labels` name its members."""
    return asdict(record) | {"features": [{"feature": f, "label": labels.get(f)} for f in record.features]}


def context(store: Store, window: Window) -> dict[str, Any]:
    """`ContextItem` of a window."""
    texts = store.text_of(window.token_ids)
    body = asdict(window)
    tokens = zip(body.pop("token_ids"), texts, body.pop("acts"), strict=True)
    body.pop("context")
    return body | {"tokens": [{"token": t, "text": s, "act": a} for t, s, a in tokens]}
