"""Files of a repository of the Hugging Face hub: fetched once, checked by their hashes, with errors that say what to do.

`HF_ENDPOINT` names another server that speaks the hub's protocol, `HF_TOKEN` an account, `HF_HUB_OFFLINE` takes only what
was fetched before.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sae.errors import ArtefactError, ConfigError, UnavailableError
from sae.foundation.downloads import cache_dir
from sae.foundation.files import link

SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
PLACE = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+?))?/?")
CHUNK_BYTES = 1 << 20
HUB = "hf://"  # what an address on the hub begins with


class Place(NamedTuple):
    """A repository of the hub, if needed at a revision, and a folder or file in it; None: all of it."""

    repo: str
    revision: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """The place that `OWNER/NAME[@REVISION][/PATH]` names, with or without hf://; None if it is no such text."""
        matching = PLACE.fullmatch(text)
        return cls(*matching.groups()) if matching else None

    @property
    def inside(self) -> str:
        """What names of files at the place begin with: the folder and a slash, or nothing."""
        return f"{self.path}/" if self.path else ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.repo}{revision}{f'/{self.path}' if self.path else ''}"


def place_of_address(address: str) -> Place:
    """The place of an address that begins with hf://; raises `ConfigError` if it is none."""
    place = Place.parse(address)
    if place is None:
        raise ConfigError(f"{address}: hf://OWNER/NAME is wanted, if needed with @REVISION and /FOLDER behind it.")
    return place


def fetch(repo: str, files: tuple[str, ...], revision: str | None = None) -> Path:
    """A folder with those files of a repository (names or globs), in the places that they have there.

    An interrupted download goes on at the next call. Raises `UnavailableError` if the server cannot give them, and
    `ArtefactError` if a file is not the one that the server's hash is of.
    """
    from huggingface_hub import snapshot_download

    with _told(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    fetched = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_wanted(path, folder, files)]
    for path in fetched:
        _check_hash(path, repo)
    if not fetched:
        raise ArtefactError(
            f"{repo}: has no files {', '.join(files)}. Look at its files on the hub, and name one of them."
        )
    return folder


def files_of(repo: str, revision: str | None = None) -> list[str]:
    """The names of all files of a repository; nothing of them is fetched."""
    from huggingface_hub import HfApi

    with _told(repo, revision):
        return list(HfApi().list_repo_files(repo, revision=revision))


def fetch_copy(repo: str, files: tuple[str, ...], revision: str | None = None) -> Path:
    """As `fetch`, in a folder of saedex's cache whose files are no links: a server opens none.

    The folder is that of the repository's commit, and takes no room beside the hub's cache on the same disk.
    """
    folder = fetch(repo, files, revision)
    copy = cache_dir() / "hub" / repo.replace("/", "--") / folder.name
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _is_wanted(path, folder, files):
            link(path, copy / path.relative_to(folder))
    return copy


def upload(folder: Path, place: Place, message: str, *, private: bool = False) -> None:
    """Adds the files of a folder to a place of a repository in one commit; makes the repository if there is none.

    Files that the repository has already, by their hash, are not sent again.
    """
    from huggingface_hub import HfApi

    with _told(place.repo, place.revision, "upload"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # tables beside weights
        HfApi().create_repo(place.repo, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=place.repo,
            folder_path=folder,
            path_in_repo=place.path,
            revision=place.revision,
            commit_message=message,
        )


def _is_wanted(path: Path, folder: Path, files: tuple[str, ...]) -> bool:
    from fnmatch import fnmatch

    name = path.relative_to(folder).as_posix()
    return any(fnmatch(name, pattern) for pattern in files)


@contextmanager
def _told(repo: str, revision: str | None, what: str = "download") -> Iterator[None]:
    """The hub's errors in our words."""
    from huggingface_hub import errors
    from huggingface_hub.utils import HFValidationError

    where = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError:
        raise UnavailableError(
            f"{where}: its owner gives it to those who accept its terms. Open its page on the hub, accept them, and log in: "
            "`hf auth login`, or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UnavailableError(
            f"{where}: no such repository on the hub, or a private one. Check its name, or log in: `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise UnavailableError(f"{where}: the repository has no such revision. Leave it out for the newest.") from None
    except HFValidationError:
        raise UnavailableError(f"{where}: cannot be a repository; OWNER/NAME is wanted.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        here = "" if what == "upload" else ", and the files were not fetched before"
        raise UnavailableError(
            f"{where}: the hub did not answer{here}. Check the network (HF_HUB_OFFLINE, HF_ENDPOINT)"
            f"{'' if what == 'upload' else ', or give a path'}."
        ) from None
    except errors.LocalTokenNotFoundError:
        raise UnavailableError(
            f"{where}: the hub wants an account. Log in: `hf auth login`, or set HF_TOKEN."
        ) from None
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UnavailableError(
                f"{where}: the hub refuses this account ({status}). Log in with one that may: `hf auth login`, or set "
                "HF_TOKEN."
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise UnavailableError(
            f"{where}: the {what} failed ({reason}). The same command goes on where it stopped."
        ) from None


def _check_hash(path: Path, repo: str) -> None:
    """Compares a file with the hash that the server gave: SHA-256 of large files, git's SHA-1 of small ones.

    The hub's cache calls a file after it. A file that differs is removed, so that the next call fetches it again.
    """
    blob = path.resolve()
    expected = blob.name
    if SHA256.fullmatch(expected):
        digest = hashlib.sha256()
    elif SHA1.fullmatch(expected):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:  # a cache without links, or a server without hashes
        return
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ArtefactError(
            f"{repo}: {path.name} has the hash {digest.hexdigest()}, the server said {expected}. It was removed; the same "
            "command fetches it again."
        )
