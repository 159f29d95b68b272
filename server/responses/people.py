"""The bodies of the API that are about what people say of features."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.responses.common import FEATURE


class Self(BaseModel):
    on: bool = Field(description="Whether people may say something here.", examples=[True])
    person: str | None = Field(description="Whose key came with the request.", examples=["ada"])
    scopes: list[str] = Field(description="What the key allows: rate, write, admin.", examples=[["write"]])


class EntryBody(BaseModel):
    kind: str = Field(description="label, note, tag, list, vote or rating.", examples=["label"])
    subject: str = Field(
        default="", description="Name of the tag or list; text that is voted on; else empty.", examples=[""]
    )
    value: str | None = Field(
        description="The text of a label or note; yes; up or down; 1 to 5. null takes it back.",
        examples=["names of capitals"],
    )


class EntryItem(EntryBody):
    id: int = Field(description="Number of the entry.", examples=[12])
    at: str = Field(description="When it was said.", examples=["2026-11-26T20:00:00.000Z"])
    person: str = Field(description="Who said it.", examples=["ada"])
    dictionary: str = Field(description="Id of the dictionary at that time.", examples=["quickstart.resid-4096"])
    weights: str = Field(description="SHA-256 of the dictionary's weights, which tell what it is about.")
    feature: int = FEATURE
    undone_at: str | None = Field(description="When it was undone; null if it counts or was replaced.")
    undone_by: str | None = Field(description="Who undid it.")
    imported_by: str | None = Field(description="Who imported it; null if it was said here.")


class EntryList(BaseModel):
    items: list[EntryItem] = Field(description="In the order in which it was said.")


class Imported(BaseModel):
    imported: int = Field(description="Entries that were new.", examples=[40])


class TagItem(BaseModel):
    name: str = Field(description="Name of the tag.", examples=["geography"])
    features: int = Field(description="Features that somebody gave it.", examples=[7])


class ListItem(BaseModel):
    person: str = Field(description="Whose list it is.", examples=["ada"])
    name: str = Field(description="Its name.", examples=["for the paper"])
    features: list[int] = Field(description="Its features, in the order in which they were added.")


class AgreementItem(BaseModel):
    alpha: float | None = Field(
        description="Krippendorff's alpha: 1 is full agreement, 0 is chance. Null without two people's values, or if all are equal.",
        examples=[0.62],
    )
    low: float | None = Field(description="Lower end of its 95 % interval.", examples=[0.41])
    high: float | None = Field(description="Upper end of its 95 % interval.", examples=[0.79])
    n_things: int = Field(description="Features or texts that two people or more spoke of.", examples=[50])
    n_people: int = Field(description="People who did.", examples=[3])


class PeopleSummary(BaseModel):
    tags: list[TagItem] = Field(description="By name.")
    lists: list[ListItem] = Field(description="By person and name.")
    labelled: int = Field(description="Features that somebody labelled.", examples=[31])
    rated: int = Field(description="Features that somebody rated.", examples=[50])
    agreement_of_ratings: AgreementItem = Field(description="Of blind ratings, 1 to 5, as an ordinal scale.")
    agreement_of_votes: AgreementItem = Field(description="Of votes on texts.")


class Triage(BaseModel):
    features: list[int] = Field(description="The next features to rate.")
    left: int = Field(description="How many are left in all.", examples=[4037])
    rated: int = Field(description="How many the asking person has rated.", examples=[50])
