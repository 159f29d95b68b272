"""What a foreign format is: weights to files and back. No code that is read is ever executed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from sae.interop.foreign_weights import ForeignWeights


class Format(ABC):
    """A library's way to keep a dictionary. The name of its file in `formats/` is its name on the command line.

    Everything that a file says is honoured, or the file is refused: a dictionary that is read computes what the other
    library's own loader makes of the file.
    """

    writes: ClassVar[bool] = True  # whether it can be exported to
    holds_context: ClassVar[bool] = False  # whether temporal dictionaries are among what it writes
    files: ClassVar[tuple[str, ...]]  # what a folder of it holds, by which it is told; a name may be a glob

    def recognises(self, path: Path) -> bool:
        """Whether a folder or file looks like this format, by its names and, where several share those, by its content."""
        if path.is_dir():
            return all(any(path.glob(name)) for name in self.files)
        return path.is_file() and any(path.match(name) for name in self.files[:1])

    @abstractmethod
    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Writes the files; raises `ConfigError` if the format cannot hold this kind of dictionary."""

    @abstractmethod
    def read(self, path: Path) -> ForeignWeights:
        """The dictionary in a folder or file; raises `ArtefactError` if there is none."""
