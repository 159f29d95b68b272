"""Bodies of what a feature fires on, and of the windows that its explanations were tested on."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.responses.common import DOCUMENT, FEATURE


class ContextItem(BaseModel):
    group: str = Field(
        description="top: the strongest; stratum: sampled from one range of activation.", examples=["top"]
    )
    rank: int = Field(description="Place in its group.", examples=[0])
    stratum: int = Field(description="Number of the range, of 8.", examples=[0])
    document: int = DOCUMENT
    place: int = Field(description="Tokens before the peak in its document, or in its stretch of text.", examples=[87])
    position: int = Field(description="Tokens of its document before the peak.", examples=[1203])
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


class JudgedItem(BaseModel):
    fires: bool = Field(description="Whether the feature fires in the window: at its peak.", examples=[True])
    said: bool | None = Field(description="What was said; null if the judge's answer could not be read.")
    document: int = DOCUMENT
    peak: int = Field(description="Index of the token that was asked about.", examples=[20])
    texts: list[str] = Field(description="Text of each token.", examples=[[" of", " Paris"]])
    places: list[int] = Field(description="Indices of the tokens on which the feature fires.", examples=[[1]])
    acts: list[float] = Field(description="Activation on each of these.", examples=[[51.82]])


class JudgedExplanation(BaseModel):
    scorer: str = Field(description="Who read the windows.", examples=["confidence"])
    explainer: str = Field(description="Explainer that the text comes from.", examples=["token"])
    text: str = Field(description="The text that was tested.", examples=["token “torch”"])
    windows: list[JudgedItem] = Field(description="The windows, those in which the feature fires first.")


class JudgedList(BaseModel):
    feature: int = FEATURE
    documents: dict[str, str] = Field(description="Names of the documents by number.", examples=[{"17": "wiki/Asia"}])
    items: list[JudgedExplanation] = Field(description="By explanation, the label first, and by scorer.")
