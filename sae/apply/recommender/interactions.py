"""What users did with items, as sequences in the order of time: read from a table, filtered, the last items held out."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sae.errors import ConfigError, DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SEPARATOR = " | "  # between the items of a sequence that is written as text


@dataclass(frozen=True)
class Columns:
    """The names of the columns: of interactions (user, item, time) and of items (item, title, year, categories)."""

    user: str = "userId"
    item: str = "movieId"
    time: str = "timestamp"
    title: str = "title"
    year: str = "year"
    categories: str = "genres"


class Item(NamedTuple):
    """An item as people know it."""

    id: str
    title: str
    categories: tuple[str, ...]


class Sequences(NamedTuple):
    """Items by number, and the items of every user in the order of time; the last is for tests, the one before for tuning."""

    items: list[Item]
    users: list[list[int]]


def rows_of(path: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The rows of a .csv or .tsv file, packed by gzip or not; raises `ConfigError` if a column is missing."""
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending not in DELIMITERS:
        raise ConfigError(f"{path}: a table ends in .csv or .tsv, perhaps with .gz.")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter=DELIMITERS[ending])
        columns = reader.fieldnames or []
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise ConfigError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns)}.")
        yield from reader


def items_of(path: Path, columns: Columns) -> dict[str, Item]:
    """Items by id. A title that is missing becomes "item ID"; categories are separated by '|'."""
    items = {}
    for row in rows_of(path, (columns.item,)):
        year, title = row.get(columns.year), row.get(columns.title) or f"item {row[columns.item]}"
        title = " ".join(title.replace("|", "/").split()) + (f" ({year})" if year else "")
        values = (row.get(columns.categories) or "").split("|")
        items[row[columns.item]] = Item(
            row[columns.item], title, tuple(sorted({v.strip() for v in values if v.strip()}))
        )
    return items


def read_sequences(interactions: Path, items: Path, columns: Columns, least: int = 5) -> Sequences:
    """The sequences of all users with `least` interactions or more, of items with as many (the k-core).

    Two interactions at one time stay in the order of the file. Raises `DataError` if nothing is left.
    """
    known = items_of(items, columns)
    rows = []
    for number, row in enumerate(rows_of(interactions, (columns.user, columns.item, columns.time)), 1):
        try:
            rows.append((row[columns.user], row[columns.item], float(row[columns.time])))
        except ValueError:
            raise DataError(f"{interactions}, row {number}: {row[columns.time]!r} is no time; give seconds.") from None

    while True:
        users, items_used = Counter(user for user, _, _ in rows), Counter(item for _, item, _ in rows)
        core = [row for row in rows if users[row[0]] >= least and items_used[row[1]] >= least]
        if len(core) == len(rows):
            break
        rows = core
    if not rows:
        raise DataError(f"{interactions}: no user and item have {least} interactions with each other's like.")

    names = sorted(items_used, key=lambda item: (len(item), item))
    number_of = {name: number for number, name in enumerate(names)}
    by_user: dict[str, list[int]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        by_user.setdefault(user, []).append(number_of[item])
    order = sorted(by_user, key=lambda user: (len(user), user))

    return Sequences([known.get(name, Item(name, f"item {name}", ())) for name in names], [by_user[u] for u in order])
