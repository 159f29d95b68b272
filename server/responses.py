"""The bodies of the API, in one place: the OpenAPI document and the explorer's types follow from them.

`feature_store.bodies` makes those of features, contexts and concepts.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

FEATURE = Field(description="Number of the feature in its dictionary.", examples=[1500])
LABEL = Field(description="Its label; null without one.", examples=["token “torch”"])
DOCUMENT = Field(description="Number of the document in the indexed text.", examples=[17])
DOCUMENT_NAME = Field(description="Its name.", examples=["wiki/Anarchism"])
CONCEPT = Field(description="Number of the concept.", examples=[3])
NAME = Field(
    description="Words that occur in its members' labels more often than in others.", examples=["war, army, battle"]
)
ACT = Field(description="Activation.", examples=[51.82])


class ErrorInfo(BaseModel):
    code: str = Field(description="Stable, for programs.", examples=["not_found"])
    message: str = Field(
        description="For people: what was wrong and what is allowed.",
        examples=["no such feature; this dictionary has features 0..4095"],
    )


class ErrorBody(BaseModel):
    error: ErrorInfo = Field(description="What went wrong.")


class Capabilities(BaseModel):
    version: str = Field(description="Version of saedex that answers.", examples=["0.9.0"])
    dictionaries: int = Field(description="Dictionaries that are served.", examples=[2])
    search: list[str] = Field(description="Kinds of search.", examples=[["all", "label", "promoted"]])
    people: bool = Field(description="Whether people with a key may say something of features.", examples=[False])
    formats: list[str] = Field(description="Formats of a whole table.", examples=[["ndjson", "csv"]])
    live: bool = Field(description="Whether the model runs here, on text of your own.", examples=[False])


class DictionarySummary(BaseModel):
    id: str = Field(description="Run and name, the id in addresses.", examples=["quickstart.resid-4096"])
    name: str = Field(description="Name in its run.", examples=["resid-4096"])
    run: str = Field(description="The run that trained it.", examples=["quickstart"])
    model: str = Field(description="The language model.", examples=["SmolLM2-135M-Instruct"])
    hook: str = Field(
        description="Where in the model it reads, with the number of the block.", examples=["resid_post.8"]
    )
    architecture: str = Field(description="Kind of sparse autoencoder.", examples=["topk"])
    d_sae: int = Field(description="Latents, each of them a feature.", examples=[4096])
    k: int | None = Field(description="Latents that a token may use; null where that is not fixed.", examples=[32])
    generation: str = Field(
        description="Changes when new evidence or labels are published.", examples=["5185c8046f1f-5872e72bf2fc"]
    )
    features: int = Field(description="Features in all.", examples=[4096])
    alive: int = Field(description="Features that fire on the indexed text.", examples=[4087])
    labelled: int = Field(description="Features with a label.", examples=[4087])
    fvu: float | None = Field(description="Fraction of variance unexplained, on held-out text.", examples=[0.11])
    l0: float | None = Field(description="Features that are active on a token, on average.", examples=[32.0])
    loss_recovered: float | None = Field(
        description="Share of the model's loss that the reconstruction keeps, against mean ablation.", examples=[0.98]
    )


class DictionaryDetail(DictionarySummary):
    card: dict[str, Any] = Field(description="What card.json says: weights, model, corpus, versions.")
    metrics: dict[str, Any] = Field(description="What metrics.json says: figures on held-out text.")
    labels: dict[str, Any] = Field(description="What labels.json says: how well labels hold up.")
    densities_log10_edges: list[float] = Field(description="Edges of density ranges, decimal logarithms.")
    densities_features: list[int] = Field(description="Features in each of these ranges.")
    training: list[dict[str, Any]] = Field(description="Lines of training.jsonl.")


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


FLOOR = Field(
    description="F2 that 95 % of the labels of random directions do not exceed; a label at or below it is weak. Null if "
    "none were labelled.",
    examples=[0.42],
)


class TableItem(FeatureItem):
    snippet: Snippet | None = Field(default=None, description="Its strongest context, if `snippets` asks for it.")


class Snippet(BaseModel):
    before: str = Field(description="Text before the token with the largest activation.", examples=["the city of"])
    peak: str = Field(description="That token.", examples=[" Paris"])
    after: str = Field(description="Text after it.", examples=[" in France"])


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


class ContextItem(BaseModel):
    group: str = Field(
        description="top: the strongest; stratum: sampled from one range of activation.", examples=["top"]
    )
    rank: int = Field(description="Place in its group.", examples=[0])
    stratum: int = Field(description="Number of the range, of 8.", examples=[0])
    document: int = DOCUMENT
    place: int = Field(description="Tokens before the peak in its document, or in its stretch of text.", examples=[87])
    peak: int = Field(description="Index of the token with the largest activation.", examples=[20])
    copies: int = Field(description="How often this text occurred while it was in the list.", examples=[1])
    percentile: float = Field(
        description="Share of the feature's firings that are weaker than this peak.", examples=[0.99]
    )
    inclusion: float = Field(description="Probability that a context of this stratum was kept.", examples=[1.0])
    token_ids: list[int] = Field(description="Token ids.", examples=[[260, 7042]])
    texts: list[str] = Field(description="Text of each token.", examples=[[" of", " Paris"]])
    places: list[int] = Field(description="Indices of the tokens on which the feature fires.", examples=[[1]])
    acts: list[float] = Field(description="Activation on each of these.", examples=[[51.82]])


class ContextList(BaseModel):
    feature: int = FEATURE
    max_act: float = Field(description="Largest activation of the feature.", examples=[51.82])
    documents: dict[str, str] = Field(
        description="Names of the documents by number.", examples=[{"17": "wiki/Anarchism"}]
    )
    items: list[ContextItem] = Field(description="From the strongest down: the top ones, then the strata.")


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


class ConceptMember(BaseModel):
    feature: int = FEATURE
    label: str | None = LABEL


class ConceptItem(BaseModel):
    concept: int = CONCEPT
    parent: int | None = Field(
        description="The concept that this one is a part of; null on the first level.", examples=[None]
    )
    name: str = NAME
    coverage: float = Field(description="Share of members whose label holds a word of the name.", examples=[0.6])
    purity: float = Field(description="Share of the members' affinity that stays inside the group.", examples=[0.8])
    features: list[ConceptMember] = Field(description="Its members.")


class ConceptList(BaseModel):
    features_grouped: int = Field(description="Features that are in any concept.", examples=[3900])
    items: list[ConceptItem] = Field(description="The largest first, each followed by its parts.")


class DocumentFeature(BaseModel):
    feature: int = FEATURE
    label: str | None = LABEL
    mean_act: float = Field(description="Mean activation over the document's tokens.", examples=[0.8])
    max_act: float = ACT


class DocumentDetail(BaseModel):
    document: int = DOCUMENT
    name: str = DOCUMENT_NAME
    features: list[DocumentFeature] = Field(description="Features that fire most in it, the strongest first.")


class DownloadItem(BaseModel):
    name: str = Field(description="Name of the file.", examples=["weights.safetensors"])
    size_bytes: int = Field(description="Its size.", examples=[18900000])
    sha256: str | None = Field(description="null for dictionary.zip, which is put together while it is sent.")
    url: str = Field(description="Its address, relative to the server's root.")


class DamageItem(BaseModel):
    id: str = Field(description="Id of the dictionary that is left out.", examples=["quickstart.resid-4096"])
    problem: str = Field(description="What is wrong, and with which file.", examples=["card.json is not valid JSON."])


TableItem.model_rebuild()
