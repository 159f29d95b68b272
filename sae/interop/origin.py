"""What `sae open` is given: an id, a repository of the hub, an address or a path; and where its files are then."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sae.errors import ArtefactError, ConfigError
from sae.foundation.hub import Place, fetch, files_of
from sae.interop import saelens_list
from sae.interop.families import Release, release_by_rule, release_of_id
from sae.interop.formats import FORMATS
from sae.publish.card import read_card
from sae.publish.download import download

OURS = "saedex"
MOST_SHOWN = 8


@dataclass(frozen=True)
class Origin:
    """A dictionary's files on this machine: the path that its format reads, and what is known besides the files."""

    what: str
    path: Path
    format: str  # `OURS` for a dictionary folder
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None


def release_called(what: str) -> Release | None:
    """The published dictionary of that id, by SAELens' list where it is installed, else by naming rules; offline."""
    return saelens_list.release_called(what) or release_of_id(what)


def origin_of(what: str, form: str | None = None) -> Origin:
    """A dictionary's files on this machine; they are fetched if they are elsewhere.

    Raises `ConfigError` if nothing is known by that name, and what `fetch` raises.
    """
    if re.match(r"https?://", what, re.IGNORECASE):
        folder = download(what)
        return Origin(what, folder, OURS, read_card(folder).name)
    path = Path(what).expanduser()
    if path.exists():
        return _local(what, path, form)
    if release := release_called(what):
        return _of_release(what, release)
    place = Place.parse(what)
    if place is None or what.startswith((".", "/", "~")):
        raise ConfigError(f"{what}: no such file or folder.")
    return _of_repository(what, place.repo, place.revision, place.path)


def _of_release(what: str, release: Release) -> Origin:
    if release.format is None:
        raise ConfigError(
            f"{what}: a {release.layout.replace('_', ' ')}, in {release.repo}; saedex does not read this layout. "
            "`sae list` shows what it reads."
        )
    folder = fetch(release.repo, release.files)
    path = folder / release.path
    return Origin(what, path, release.format, _name(release.id), facts=release.facts, licence=release.licence)


def _of_repository(what: str, repo: str, revision: str | None, place: str | None) -> Origin:
    """A dictionary of any repository, told by the names of its files."""
    names = files_of(repo, revision)
    wanted = [name for name in names if place is None or name == place or name.startswith(f"{place}/")]
    candidates = _candidates(wanted)
    if not candidates:
        said = f"{repo} has {', '.join(names[:MOST_SHOWN]) or 'no files'}{', ...' if len(names) > MOST_SHOWN else ''}"
        raise ConfigError(f"{what}: no dictionary in a layout that saedex reads: {', '.join(FORMATS)}. {said}.")
    if len(candidates) > 1:
        near = difflib.get_close_matches(place or "", candidates, n=MOST_SHOWN, cutoff=0.0)
        raise ConfigError(
            f"{what}: {len(candidates):,} dictionaries are there. Name one of them: {repo}/{near[0]}, ... "
            f"({', '.join(near)})."
        )
    [only] = candidates
    files = (only, str(PurePosixPath(only).parent / "*.yaml")) if only in names else _all_in(only)
    folder = fetch(repo, files, revision)
    by_rule = release_by_rule(repo, only)
    path = folder / only
    if (path / "card.json").exists():
        return Origin(what, path, OURS, read_card(path).name)
    known: dict[str, Any] = {"facts": by_rule.facts, "licence": by_rule.licence} if by_rule else {}
    return Origin(what, path, _format_of(path), _name(f"{repo}/{only}"), **known)


def _all_in(place: str) -> tuple[str, ...]:
    return ("*",) if place == "." else (f"{place}/*",)


def _candidates(names: list[str]) -> list[str]:
    """Folders and files that look like a dictionary, by the names of all files."""
    folders: dict[str, set[str]] = {}
    for name in names:
        for parent in PurePosixPath(name).parents:
            folders.setdefault(str(parent), set()).add(PurePosixPath(name).relative_to(parent).as_posix())
    kinds = [("card.json", "weights*.safetensors"), *(form.files for form in FORMATS.values() if len(form.files) > 1)]
    candidates = [folder for folder, inside in folders.items() if any(_holds_all(inside, files) for files in kinds)]
    singles = [form.files[0] for form in FORMATS.values() if len(form.files) == 1]
    candidates += [name for name in names if any(PurePosixPath(name).match(glob) for glob in singles)]
    return sorted(candidates)


def _holds_all(inside: set[str], files: tuple[str, ...]) -> bool:
    """Whether a folder holds, right in it, a file of each of these names or globs."""
    return all(
        any(name.count("/") == glob.count("/") and PurePosixPath(name).match(glob) for name in inside) for glob in files
    )


def _local(what: str, path: Path, form: str | None) -> Origin:
    if form is None and (path / "card.json").is_file():
        return Origin(what, path, OURS, read_card(path).name)
    if form is not None and form.replace("-", "_") not in FORMATS:
        raise ConfigError(f"--format {form}: known are {', '.join(FORMATS)}.")
    layout = form.replace("-", "_") if form else _format_of(path)
    if path.is_dir() and len(FORMATS[layout].files) == 1:  # its file alone is read
        path = _only_file(path, FORMATS[layout].files[0])
    release = _release_of_path(path.resolve())
    name = path.parent.name if path.suffix in (".npz",) else path.name
    known: dict[str, Any] = {"facts": release.facts, "licence": release.licence} if release else {}
    return Origin(what, path, layout, _name(release.id if release else name), **known)


def _only_file(folder: Path, glob: str) -> Path:
    files = sorted(folder.glob(glob))
    if len(files) != 1:
        raise ConfigError(f"{folder}: holds {', '.join(file.name for file in files[:MOST_SHOWN])}. Name one of them.")
    return files[0]


def _format_of(path: Path) -> str:
    """The format that a file or folder looks like; raises `ConfigError` if there is none, or more than one."""
    fitting = [name for name, form in FORMATS.items() if form.recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:MOST_SHOWN]) if path.is_dir() else path.name
    if not fitting:
        raise ConfigError(
            f"{path}: holds {inside or 'nothing'}, which is no layout that saedex reads: {', '.join(FORMATS)}. Give the "
            "folder or file of one dictionary, or its layout: --format."
        )
    raise ConfigError(f"{path}: may be {' or '.join(fitting)}. Say which: --format {fitting[0]}.")


def _release_of_path(path: Path) -> Release | None:
    """What the folders around a local copy say, where they are called as in the release."""
    parts = path.parts[:-1] if path.name == "params.npz" else path.parts
    for start in range(len(parts) - 2):
        if release := release_by_rule("/".join(parts[start : start + 2]), "/".join(parts[start + 2 :])):
            return release
    return None


def _name(text: str) -> str:
    """A name that a dictionary may have, of the last parts of an id or path that say something."""
    words = re.sub(r"[^a-z0-9._-]+", "-", text.lower().removesuffix(".safetensors").removesuffix(".sae.pt")).strip(
        "-._"
    )
    if not words:
        raise ArtefactError(f"{text!r}: no name can be made of it; give one: --name")
    return words[-64:].lstrip("-._")
