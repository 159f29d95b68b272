"""The dictionaries that a server shows: found on disk, checked, opened read-only, read again when they change."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import duckdb

from feature_store.dictionary_files import DictionaryCard, JsonFileError
from feature_store.engine import Engine
from feature_store.errors import StoreError
from feature_store.store import Store
from server.downloads import DamagedFile, Download, Downloads
from server.edition import Edition, published_hashes, read_generations, states_of
from server.errors import RETRY, ApiError
from server.file_digests import CARDS, HASHED

SELF_EXPLAINING = (StoreError, JsonFileError, DamagedFile, ValueError, OSError)
UNREADABLE = (*SELF_EXPLAINING, duckdb.Error, KeyError, TypeError, AttributeError)
TRIES = 3
CHECKED_FIRST = 500_000_000  # bytes that are read before the first answer, a third of a second; the rest after it
WIDE = 65_536  # features
ENGINE_BYTES = 200_000_000  # of DuckDB, for all dictionaries together
LOADED_FEATURES = 1_000_000  # whose narrow columns are held, of all dictionaries together; about 200 bytes each
T = TypeVar("T")


class CatalogueError(Exception):
    """Paths without a dictionary that can be served."""


class Recent:
    """The stores that were read last: of others, what they loaded is freed, and loaded again when it is needed."""

    def __init__(self, most_features: int):
        self.most_features = most_features
        self._stores: OrderedDict[Store, None] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, store: Store) -> None:
        """Notes a store that is read now."""
        with self._lock:
            self._stores[store] = None
            self._stores.move_to_end(store)
            total = 0
            for number, other in enumerate(reversed(list(self._stores))):
                total += other.n_features
                if number and total > self.most_features:
                    self._stores.pop(other)
                    other.forget()


class Entry:
    """One dictionary of the server: its id, its newest edition and its downloads.

    Its files are read whole, and compared with their hashes, before anybody sees them; `late`, if it is given, does so while
    they are served already.
    """

    def __init__(self, folder: Path, engine: Engine, recent: Recent, late: LateChecks | None = None):
        self.folder, self._engine, self._recent, self._late = folder, engine, recent, late
        self.downloads = Downloads(folder)
        self._lock = threading.Lock()
        self._state = states_of(folder)
        self._read_edition()
        self.id = f"{self._edition.card.run}.{self._edition.card.name}"

    def _read_edition(self) -> None:
        """Takes the edition that the folder holds now."""
        hashes = published_hashes(DictionaryCard.read(self.folder), read_generations(self.folder))
        if self._late is None:
            self.downloads.check(hashes)
        else:
            self.downloads.trust(hashes)
        self._edition = Edition(self.folder, self._engine)
        if self._late is not None:
            self._late.add(self, hashes)  # not before there is an edition that damage can be told of

    def damage(self, hashes: dict[str, str]) -> str | None:
        """What is wrong with the files that have these hashes, which are read now; None also if newer ones took their place."""
        try:
            for path, sha256 in hashes.items():
                self.downloads.check_file(path, sha256)
        except (DamagedFile, OSError) as error:
            return str(error) if hashes == self._edition.published_hashes else None
        return None

    def edition(self) -> Edition:
        """The newest edition, for all that one request says. Requests that hold the former one finish on it.

        While the files on disk cannot be read, the last edition that could be stays.
        """
        if not self.is_current():
            with self._lock:
                self._read_again()
        self._recent.use(self._edition.store)
        return self._edition

    def is_current(self) -> bool:
        """Whether `edition` answers at once, without reading files."""
        return states_of(self.folder) == self._state

    def download(self, name: str) -> Download | None:
        """One file on offer by its exact name, open."""
        return self._of_one_edition(lambda edition: self.downloads.open(edition, name))

    def list_downloads(self) -> list[Download]:
        """Every file on offer, open; dictionary.zip, which holds all of them, last."""
        return self._of_one_edition(self.downloads.open_all)

    def close(self) -> None:
        """Closes the store."""
        self._edition.store.close()

    def _read_again(self) -> None:
        state = states_of(self.folder)
        if state == self._state:
            return
        try:
            self._read_edition()
        except UNREADABLE as error:
            if state != states_of(self.folder):
                return  # a publication was under way; the next request reads what came of it
            sys.stderr.write(f"error: {self.id} is served as it was, its files cannot be read now: {error!r}\n")
        self._state = state

    def _of_one_edition(self, read: Callable[[Edition], T]) -> T:
        for _ in range(TRIES):
            try:
                return read(self.edition())
            except FileNotFoundError:
                continue  # a newer generation took the place of this one
        raise ApiError(503, "the files of this dictionary are being replaced; try again in a second", RETRY)


@dataclass(frozen=True)
class Damage:
    """A dictionary that is left out, and why."""

    folder: Path
    problem: str

    @property
    def id(self) -> str:
        """The id that a dictionary of this run folder has."""
        folder = self.folder.resolve()
        return f"{folder.parent.parent.name}.{folder.name}"


class Catalogue(dict[str, Entry]):
    """The dictionaries of a server by id, and those that are left out because a file of theirs is damaged."""

    def __init__(self, entries: list[Entry] | None = None, damage: list[Damage] | None = None):
        super().__init__({entry.id: entry for entry in entries or []})
        self.damage = damage or []

    def entries(self) -> list[Entry]:
        """All that are served now; one that is left out meanwhile stays in this list."""
        return list(self.values())

    def leave_out(self, entry: Entry, problem: str) -> None:
        """Serves a dictionary no longer."""
        self.damage.append(Damage(entry.folder, problem))
        self.pop(entry.id, None)
        sys.stderr.write(f"error: {entry.id} is served no longer: {problem}\n")

    def load_widest(self) -> None:
        """Reads the columns of the widest dictionary, for which its first table would wait."""
        with suppress(*UNREADABLE):  # a request that reads them says what is wrong
            stores = [entry.edition().store for entry in self.entries()]
            widest = max(stores, key=lambda store: store.n_features)
            if widest.n_features >= WIDE:
                _ = widest.columns.lower_labels


class LateChecks:
    """Files that are read while they are served, one dictionary after another; damaged ones are then left out."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Entry, dict[str, str]]] = SimpleQueue()
        self._catalogue: Catalogue | None = None

    def add(self, entry: Entry, hashes: dict[str, str]) -> None:
        """Adds the files of a dictionary."""
        self._waiting.put((entry, hashes))
        if self._catalogue is not None:
            self.begin(self._catalogue)

    def begin(self, catalogue: Catalogue) -> None:
        """Reads what was added in a thread that nobody waits for, and that ends with it; from now on also what will be."""
        self._catalogue = catalogue
        if not self._waiting.empty():
            threading.Thread(target=self._read, args=(catalogue,), daemon=True).start()

    def _read(self, catalogue: Catalogue) -> None:
        with suppress(Empty):
            while True:
                entry, hashes = self._waiting.get_nowait()
                problem = entry.damage(hashes)
                if problem:
                    catalogue.leave_out(entry, problem)


def _size_of(folder: Path) -> int:
    """Bytes of what is hashed of a dictionary folder."""
    return sum(path.stat().st_size for pattern in HASHED for path in folder.glob(pattern) if path.is_file())


def dictionary_folders(path: Path) -> list[Path]:
    """Dictionary folders at a path: itself, or the finished ones of a run folder, or of a folder of runs."""
    if (path / "card.json").is_file():
        return [path]
    for pattern in CARDS[1:]:
        folders = sorted(p.parent for p in path.glob(pattern) if not p.parent.name.startswith("."))
        if finished := [folder for folder in folders if _is_finished(folder)]:
            return finished
    raise CatalogueError(f"{path}: no finished dictionary there. Give a run folder such as runs/quickstart.")


def _is_finished(folder: Path) -> bool:
    """Whether its store is published; a pointer that cannot be read is damaged, which is said when it is opened."""
    try:
        return "contexts" in read_generations(folder)
    except UNREADABLE:
        return True


def open_catalogue(paths: list[Path]) -> Catalogue:
    """The dictionaries under the paths. One that cannot be opened is left out; `CatalogueError` if none is left."""
    folders = [folder for path in paths for folder in dictionary_folders(path)]
    engine, recent = Engine([folder / "store" for folder in folders], ENGINE_BYTES), Recent(LOADED_FEATURES)
    late = LateChecks()
    sizes = itertools.accumulate(map(_size_of, folders))
    checks = [None if size <= CHECKED_FIRST else late for size in sizes]
    with ThreadPoolExecutor() as threads:  # most of the time goes into hashes, which need no interpreter
        opened = list(threads.map(lambda folder, late: _open(folder, engine, recent, late), folders, checks))

    entries = [entry for entry in opened if isinstance(entry, Entry)]
    damage = [one for one in opened if isinstance(one, Damage)]
    if not entries:
        raise CatalogueError("; ".join(f"{one.folder}: {one.problem}" for one in damage))

    catalogue = Catalogue(entries, damage)
    late.begin(catalogue)
    if len(catalogue) < len(entries):
        ids = [entry.id for entry in entries]
        twice = next(entry for entry in reversed(entries) if ids.count(entry.id) > 1)
        raise CatalogueError(f"{twice.folder}: another dictionary has the id {twice.id} too. Serve them separately.")
    return catalogue


def _open(folder: Path, engine: Engine, recent: Recent, late: LateChecks | None) -> Entry | Damage:
    try:
        return Entry(folder, engine, recent, late)
    except UNREADABLE as error:
        problem = str(error).replace(f"{folder}{os.sep}", "")  # people on the network have no use for paths
        return Damage(folder, problem if isinstance(error, SELF_EXPLAINING) else f"it cannot be read ({error!r})")
