"""Further plug-ins for a process of `sae ...`, in a folder of a test.

FOLDER/sae.architectures/half.py becomes the plug-in `half` beside those in the installed folder of that package, for
this process alone: folders are put on the packages' `__path__` when they are imported, and nothing is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class Further(MetaPathFinder):
    """Finds packages as ever, and puts the folder of their name, if there is one, behind their own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual specification of a package that has a folder; None leaves all other modules to the others."""
        further = self.folder / fullname
        if not further.is_dir():
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(further))
        return spec
