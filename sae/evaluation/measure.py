"""What a measure is: a dictionary in, named figures and perhaps a picture out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from sae.evaluation.subject import Subject


class Measure(ABC):
    """One kind of figure about a dictionary. Its keys stand in metrics.json beside those of all other measures."""

    by_default: ClassVar[bool] = False  # whether every training run ends with it
    order: ClassVar[int] = 10  # place in the report
    meanings: ClassVar[dict[str, str]] = {}  # key (dotted where nested) -> what it says, for the report

    def applies(self, subject: Subject) -> bool:
        """Whether it says anything about this dictionary; it does by default."""
        return True

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Any]:
        """The figures by name."""

    def draw(self, found: dict[str, Any], title: str, folder: Path) -> None:  # noqa: B027 (most draw nothing)
        """Writes pictures of the figures into the folder; none by default."""
