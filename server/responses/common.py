"""Fields that several bodies share."""

from __future__ import annotations

from pydantic import Field

FEATURE = Field(description="Number of the feature in its dictionary.", examples=[1500])
LABEL = Field(description="Its label; null without one.", examples=["token “torch”"])
DOCUMENT = Field(description="Number of the document in the indexed text.", examples=[17])
DOCUMENT_NAME = Field(description="Its name.", examples=["wiki/Anarchism"])
CONCEPT = Field(description="Number of the concept.", examples=[3])
NAME = Field(
    description="Words that occur in its members' labels more often than in others.", examples=["war, army, battle"]
)
ACT = Field(description="Activation.", examples=[51.82])
FLOOR = Field(
    description="F2 that 95 % of the labels of random directions do not exceed; a label at or below it is weak. Null if "
    "none were labelled.",
    examples=[0.42],
)
