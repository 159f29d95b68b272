"""The build hook: the explorer is part of every wheel, and one without it is refused."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def make_hook(root: Path):
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "server" / "ui" / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.ExplorerBuildHook(str(root), {}, None, None, str(root / "dist"), "wheel")


def test_a_wheel_without_the_explorer_is_refused(tmp_path, monkeypatch):
    (tmp_path / "server" / "ui").mkdir(parents=True)
    (tmp_path / "server" / "ui" / "package.json").write_text("{}")
    hook = make_hook(tmp_path)
    monkeypatch.setattr(hook, "_build", lambda ui: None)
    with pytest.raises(RuntimeError, match=r"server/static/index\.html is missing"):
        hook.initialize("standard", {})


def test_the_explorer_is_built_again_only_when_a_source_is_newer(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "server" / "ui" / "src", tmp_path / "server" / "ui" / "src")
    static = tmp_path / "server" / "static"
    static.mkdir()
    (static / "index.html").write_text("x")
    hook, built = make_hook(tmp_path), []
    monkeypatch.setattr(hook, "_build", built.append)
    hook.initialize("editable", {})
    assert not built
    later = (static / "index.html").stat().st_mtime + 10
    os.utime(tmp_path / "server" / "ui" / "src" / "main.ts", (later, later))
    hook.initialize("editable", {})
    assert len(built) == 1


def test_the_installed_package_has_the_explorer():
    assert "assets/index" in (resources.files("server") / "static" / "index.html").read_text()


def test_training_without_torch_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from sae.cli import main; sys.exit(main(['train', 'x.yaml']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 69
    assert "pip install 'saedex[train]'" in done.stderr and "Traceback" not in done.stderr
