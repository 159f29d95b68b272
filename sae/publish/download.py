"""A dictionary behind a server's address: downloaded within limits, checked, and kept in the cache under its own hash."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from filelock import FileLock

from feature_store.dictionary_files import DictionaryCard, JsonFileError
from sae.errors import ArtefactError, DiskError, UnavailableError
from sae.foundation.downloads import cache_dir
from sae.foundation.files import temporary_of, write_folder
from sae.publish.card import module_without_weights, weights_bytes, weights_files

CARD_BYTES = 1 << 20
HEADER_BYTES = 1 << 16  # names and shapes in front of the numbers, in one file of weights
SECONDS = 60.0  # for any answer; a body may take longer by its size at the least speed
LEAST_BYTES_PER_SECOND = 100_000
MOST_REDIRECTS = 5


def download(url: str) -> Path:
    """Folder in the cache with the dictionary at a server's `/api/v1/dictionaries/{name}` address.

    The server is not trusted. Its card is at most 1 MiB, its weights are as large as the card's shapes make them, and
    they come at 100 kB a second at least. The folder is named after the hash of the card's bytes, which hold the hashes
    of all weights, so that no server can put anything in the place of another's. Processes that want the same
    dictionary share one download. Nothing stays after a failure.

    Raises `UnavailableError` if the server does not answer as it should, `ArtefactError` if what it sends is wrong,
    `DiskError` if the disk is too small.
    """
    base = url.rstrip("/")
    body = bytearray()
    _receive(f"{base}/download/card.json", CARD_BYTES, body.extend)
    card_bytes = bytes(body)

    try:
        card = DictionaryCard.parse(card_bytes, _shown(url))
    except JsonFileError as error:
        raise ArtefactError(str(error)) from None

    files = weights_files(card, _shown(url))
    size = weights_bytes(module_without_weights(card, _shown(url)))
    folder = cache_dir() / "dictionaries" / hashlib.sha256(card_bytes).hexdigest()
    folder.parent.mkdir(exist_ok=True)

    def fill(target: Path) -> None:
        left = size
        for name, sha256 in files.items():
            left -= _receive_file(f"{base}/download/{name}", left + HEADER_BYTES, target / name, sha256)
        (target / DictionaryCard.file_name).write_bytes(card_bytes)

    with FileLock(f"{folder}.lock"):
        if not _has_card(folder, card_bytes):
            _check_space(folder.parent, size, _shown(url))
            try:
                write_folder(folder, fill)
            finally:
                shutil.rmtree(temporary_of(folder), ignore_errors=True)

    return folder


def _has_card(folder: Path, card_bytes: bytes) -> bool:
    path = folder / DictionaryCard.file_name
    return path.is_file() and path.read_bytes() == card_bytes


def _check_space(folder: Path, size: int, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskError(
            f"{where}: its weights take {size / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free. Make room, or set "
            f"SAEDEX_CACHE to a folder on a larger disk."
        )


def _receive_file(url: str, limit: int, path: Path, sha256: str) -> int:
    """Writes a body of at most `limit` bytes to `path` if it has this hash; returns its size without `HEADER_BYTES`."""
    digest = hashlib.sha256()

    with path.open("wb") as file:

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        _receive(url, limit, write)

    if digest.hexdigest() != sha256:
        raise ArtefactError(
            f"{_shown(url)}: SHA-256 is {digest.hexdigest()}, the card says {sha256}. Download it again; if it stays so, "
            f"ask whoever runs the server."
        )
    return max(0, path.stat().st_size - HEADER_BYTES)


def _receive(url: str, limit: int, write: Callable[[bytes], Any]) -> None:
    """Passes the body at `url` to `write` in parts; raises an error of saedex if it is not plain, whole and in time."""
    # A loop in a thread of its own has a deadline over all that a server can draw out, and works inside a notebook.
    with start_blocking_portal() as portal:
        portal.call(_receive_in_loop, url, limit, write)


async def _receive_in_loop(url: str, limit: int, write: Callable[[bytes], Any]) -> None:
    seconds = SECONDS + limit / LEAST_BYTES_PER_SECOND
    headers = {"accept-encoding": "identity"}  # what is packed may unpack to any size
    size = 0

    try:
        with anyio.fail_after(seconds):
            async with (
                httpx.AsyncClient(timeout=SECONDS, headers=headers) as client,
                _answer_of(client, url) as answer,
            ):
                async for chunk in answer.aiter_raw():
                    size += len(chunk)
                    if size > limit:
                        raise ArtefactError(
                            f"{_shown(url)}: more than {limit:,} bytes. It cannot be what it is said to be."
                        )
                    write(chunk)
    except TimeoutError:
        raise UnavailableError(f"{_shown(url)}: {size:,} bytes came in {seconds:.0f} seconds. Try again.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise UnavailableError(f"{_shown(url)}: the download failed ({reason}). Is the server running?") from None


@asynccontextmanager
async def _answer_of(client: httpx.AsyncClient, url: str) -> AsyncIterator[httpx.Response]:
    """The answer at an address, or where it points to; httpx would read the whole body of an answer that points on."""
    request = client.build_request("GET", url)
    for _ in range(1 + MOST_REDIRECTS):
        async with aclosing(await client.send(request, stream=True)) as answer:
            following = answer.next_request
            if following is None:
                _check_answer(answer, url)
                yield answer
                return
        if following.url.scheme not in {"https", request.url.scheme}:
            raise UnavailableError(
                f"{_shown(url)}: the server points to {_shown(str(following.url))}. saedex follows addresses with http "
                f"and https, and none from https to http."
            )
        request = following
    raise UnavailableError(f"{_shown(url)}: the server points on {MOST_REDIRECTS} times and more.")


def _check_answer(answer: httpx.Response, url: str) -> None:
    """Raises `UnavailableError` unless this is the body itself, as it is."""
    if answer.status_code != httpx.codes.OK:
        raise UnavailableError(
            f"{_shown(url)}: the answer is {answer.status_code} {answer.reason_phrase}. Is the server running, and is the "
            f"address that of a dictionary, /api/v1/dictionaries/NAME?"
        )
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnavailableError(f"{_shown(url)}: the answer is packed ({encoding}), and plain bytes were asked for.")


def _shown(url: str) -> str:
    """An address without the password that it may hold."""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b""))
    except httpx.InvalidURL:
        return "this address"
