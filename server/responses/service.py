"""Bodies about the server itself: errors, what it can do, what it leaves out."""

from __future__ import annotations

from pydantic import BaseModel, Field


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


class DamageItem(BaseModel):
    id: str = Field(description="Id of the dictionary that is left out.", examples=["quickstart.resid-4096"])
    problem: str = Field(description="What is wrong, and with which file.", examples=["card.json is not valid JSON."])
