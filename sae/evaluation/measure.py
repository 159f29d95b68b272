"""What a measure is: from a dictionary to named figures, and perhaps a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from sae.evaluation.subject import Subject


class Measure(ABC):
    """One kind of figure about a dictionary. Its keys in metrics.json must differ from those of all other measures."""

    by_default: ClassVar[bool] = False  # whether every training run ends with it
    order: ClassVar[int] = 10  # place in the report
    control_figures: ClassVar[tuple[str, ...]] = ()  # of its figures, those that controls are shown beside it with
    meanings: ClassVar[dict[str, str]] = {}  # key (dotted where nested) -> what it says, for the report

    def applies(self, subject: Subject) -> bool:
        """Whether it says anything about this dictionary. The docstring of an override is the reason that users read."""
        return True

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Any]:
        """The figures by name."""

    def draw(self, figures: dict[str, Any], title: str, folder: Path) -> None:  # noqa: B027 (most draw nothing)
        """Writes pictures of the figures into the folder; none by default."""
