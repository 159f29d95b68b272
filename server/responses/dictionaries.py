"""Bodies about dictionaries: their figures, concepts, documents and downloads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from server.responses.common import ACT, CONCEPT, DOCUMENT, DOCUMENT_NAME, FEATURE, LABEL, NAME


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


class OtherText(BaseModel):
    id: str = Field(description="Id of the dictionary on that text.", examples=["gemma-on-emails.layer-9"])
    text: str | None = Field(description="The text, in words; null: that of training.", examples=["emails.jsonl"])


class DictionaryDetail(DictionarySummary):
    text: str | None = Field(
        description="The text it was indexed on, if that is not the text of training.", examples=["emails.jsonl"]
    )
    is_first_look: bool = Field(description="Whether only the first tokens are indexed yet.", examples=[False])
    other_texts: list[OtherText] = Field(description="The same weights on other texts; features keep their numbers.")
    card: dict[str, Any] = Field(description="What card.json says: weights, model, corpus, versions.")
    metrics: dict[str, Any] = Field(description="What metrics.json says: figures on held-out text.")
    labels: dict[str, Any] = Field(description="What labels.json says: how well labels hold up.")
    densities_log10_edges: list[float] = Field(description="Edges of density ranges, decimal logarithms.")
    densities_features: list[int] = Field(description="Features in each of these ranges.")
    training: list[dict[str, Any]] = Field(description="Lines of training.jsonl.")


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


class DocumentText(BaseModel):
    document: int = DOCUMENT
    name: str = DOCUMENT_NAME
    n_tokens: int = Field(description="Tokens of the whole document.", examples=[5120])
    first: int = Field(description="Number of the first token here.", examples=[0])
    texts: list[str] = Field(description="Text of each token.", examples=[[" of", " Paris"]])


class DownloadItem(BaseModel):
    name: str = Field(description="Name of the file.", examples=["weights.safetensors"])
    size_bytes: int = Field(description="Its size.", examples=[18900000])
    sha256: str | None = Field(description="null for dictionary.zip, which is put together while it is sent.")
    url: str = Field(description="Its address, relative to the server's root.")
