"""The file of people's entries and keys: SQLite, so that several processes may write while others read.

Nothing is ever changed or removed but by marking it: every entry stays, the newest of its kind counts, and an entry that
was undone lets the one before it count again. So the file is its own audit.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from feature_store.people.entry import Entry, EntryError, Kind, Place, Record, checked

Scope = Literal["read", "rate", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ALLOWS: dict[Scope, tuple[Kind, ...]] = {
    "read": (),
    "rate": ("rating", "vote"),
    "write": ("label", "note", "tag", "list", "rating", "vote", "description", "vector", "activations"),
    "admin": (),
}
FORMAT_VERSION = 1
BUSY_S = 5.0
PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
SCHEMA = f"""
create table key (person text primary key, sha256 text not null unique, scopes text not null, created_at text not null,
    revoked_at text);
create table entry (
    id integer primary key autoincrement, at text not null, person text not null,
    dictionary text not null, weights text not null, feature integer not null,
    kind text not null, subject text not null, value text, -- null: taken back
    undone_at text, undone_by text, imported_by text);
create index entry_place on entry (weights, feature, kind, subject, person, id);
create view said as select * from entry e where value is not null and id = (
    select max(id) from entry o where o.weights = e.weights and o.feature = e.feature and o.kind = e.kind
    and o.subject = e.subject and o.person = e.person and o.undone_at is null);
pragma user_version = {FORMAT_VERSION};
"""
COLUMNS = "id, at, person, kind, subject, value, dictionary, weights, feature, undone_at, undone_by, imported_by"


class PeopleError(Exception):
    """A file that is not one of ours, a name that cannot be one, or something that is not there."""


class Person(NamedTuple):
    """Who has a key, and what it allows."""

    name: str
    scopes: tuple[Scope, ...]

    def may(self, kind: Kind) -> bool:
        """Whether the key allows to write entries of a kind."""
        return any(kind in ALLOWS[scope] for scope in self.scopes)


class KeyRecord(NamedTuple):
    """A key without the key itself, which nobody can read again."""

    person: str
    scopes: str
    created_at: str
    revoked_at: str | None


class People:
    """An open file; usable from many threads, each with a connection of its own."""

    def __init__(self, path: Path, *, create: bool = False):
        if not create and not path.is_file():
            raise PeopleError(f"{path}: no such file.")
        self.path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        try:
            [version] = self._connection.execute("pragma user_version").fetchone()
            tables = self._connection.execute("select count(*) from sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                self._connection.executescript(f"pragma journal_mode=wal; begin immediate; {SCHEMA} commit;")
            elif version != FORMAT_VERSION:
                raise PeopleError(f"{path}: not a file of people's entries of format {FORMAT_VERSION}.")
        except sqlite3.Error as error:
            raise PeopleError(f"{path}: SQLite cannot use it as a file of people's entries ({error}).") from None

    @property
    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            connection.execute("pragma synchronous=full")
            self._local.connection = connection
            self._all.append(connection)
        return connection

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._all:
            connection.close()

    # Keys

    def add_key(self, name: str, scopes: Iterable[str]) -> str:
        """A new key for a new person. It is shown once: the file holds its SHA-256 alone."""
        wanted = tuple(dict.fromkeys(scopes))
        if not PERSON.fullmatch(name):
            raise PeopleError(
                f"{name!r}: a name has up to 32 letters, digits or ._-, and begins with a letter or digit."
            )
        if not wanted or not set(wanted) <= set(SCOPES):
            raise PeopleError(f"scopes: some of {', '.join(SCOPES)} are wanted, not {', '.join(wanted) or 'none'}.")
        key = f"sk-{secrets.token_urlsafe(32)}"
        try:
            self._connection.execute(
                "insert into key values (?, ?, ?, ?, null)", [name, _sha256(key), " ".join(wanted), _now()]
            )
        except sqlite3.IntegrityError:
            raise PeopleError(f"{name}: has or had a key already. Names are not given twice.") from None
        return key

    def revoke_key(self, name: str) -> None:
        """Makes a person's key worthless; what the person said stays."""
        done = self._connection.execute(
            "update key set revoked_at = ? where person = ? and revoked_at is null", [_now(), name]
        )
        if not done.rowcount:
            known = ", ".join(key.person for key in self.key_records() if key.revoked_at is None) or "nobody"
            raise PeopleError(f"{name}: has no key. {known} has.")

    def key_records(self) -> list[KeyRecord]:
        """All keys, by name."""
        rows = self._connection.execute("select person, scopes, created_at, revoked_at from key order by person")
        return [KeyRecord(*row) for row in rows]

    def person_of(self, key: str) -> Person | None:
        """Who has the key; None if nobody has."""
        row = self._connection.execute(
            "select person, scopes from key where sha256 = ? and revoked_at is null", [_sha256(key)]
        ).fetchone()
        return Person(row[0], cast("tuple[Scope, ...]", tuple(row[1].split()))) if row else None

    # Entries

    def write(self, person: str, place: Place, entry: Entry) -> Record:
        """Adds an entry and returns it with its number."""
        columns = [_now(), person, *place, entry.kind, entry.subject, entry.value]
        done = self._connection.execute(
            "insert into entry (at, person, dictionary, weights, feature, kind, subject, value) values (?, ?, ?, ?, ?, ?, ?, ?)",
            columns,
        )
        return self._record(cast("int", done.lastrowid))

    def undo(self, person: Person, number: int | None = None) -> Record:
        """Undoes the person's last entry, or that of a number, which another's key may do only with `admin`."""
        if number is None:
            row = self._connection.execute(
                "select max(id) from entry where person = ? and undone_at is null and imported_by is null",
                [person.name],
            ).fetchone()
            if row[0] is None:
                raise PeopleError("there is nothing to undo.")
            number = int(row[0])
        record = self._record(number)
        if record.person != person.name and "admin" not in person.scopes:
            raise PeopleError(f"entry {number} is another person's; that needs a key with admin.")
        done = self._connection.execute(
            "update entry set undone_at = ?, undone_by = ? where id = ? and undone_at is null",
            [_now(), person.name, number],
        )
        if not done.rowcount:
            raise PeopleError(f"entry {number} is undone already.")
        return self._record(number)

    def said(
        self, weights: str, feature: int | None = None, *, kind: Kind | None = None, person: str | None = None
    ) -> list[Record]:
        """What counts of a dictionary, or of one feature of it, in the order in which it was said."""
        conditions = {"feature": feature, "kind": kind, "person": person}
        chosen = {name: value for name, value in conditions.items() if value is not None}
        where = "".join(f" and {name} = ?" for name in chosen)
        rows = self._connection.execute(
            f"select {COLUMNS} from said where weights = ?{where} order by id", [weights, *chosen.values()]
        )
        return [_record(row) for row in rows]

    def members(self, person: str, name: str) -> list[Record]:
        """The entries of a list, whatever their dictionary, in the order in which they were added."""
        rows = self._connection.execute(
            f"select {COLUMNS} from said where kind = 'list' and person = ? and subject = ? order by id", [person, name]
        )
        return [_record(row) for row in rows]

    def n_written(self, person: str, kind: Kind) -> int:
        """How many entries of a kind a person ever wrote."""
        query = "select count(*) from entry where person = ? and kind = ?"
        return self._connection.execute(query, [person, kind]).fetchone()[0]

    def records(self, *, everything: bool = False, person: str | None = None, after: int = 0) -> Iterator[Record]:
        """What counts, or everything that was ever said, in the order in which it was said; of one person or of all."""
        source = "entry" if everything else "said"
        query = f"select {COLUMNS} from {source} where id > ? and (? is null or person = ?) order by id"
        for row in self._connection.execute(query, [after, person, person]):
            yield _record(row)

    def import_records(self, importer: str, rows: Iterable[Any]) -> int:
        """Adds exported entries under the names that said them; returns how many are new. All or none are added."""
        columns = ("at", "person", "dictionary", "weights", "feature", "kind", "subject", "value")
        same = " and ".join(f"{name} is ?" for name in columns)
        n = 0
        with self._transaction() as connection:
            for line, row in enumerate(rows, 1):
                values = _imported(line, row)
                if connection.execute(f"select 1 from entry where {same} limit 1", values).fetchone():
                    continue
                connection.execute(
                    f"insert into entry ({', '.join(columns)}, imported_by) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [*values, importer],
                )
                n += 1
        return n

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection)

    def _record(self, number: int) -> Record:
        row = self._connection.execute(f"select {COLUMNS} from entry where id = ?", [number]).fetchone()
        if row is None:
            raise PeopleError(f"there is no entry {number}.")
        return _record(row)


class _Transaction:
    """All statements in it, or none."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self.connection.execute("begin immediate")
        return self.connection

    def __exit__(self, kind: object, *_: object) -> None:
        self.connection.execute("commit" if kind is None else "rollback")


def _record(row: tuple[Any, ...]) -> Record:
    number, at, person, kind, subject, value, dictionary, weights, feature, *marks = row
    undone_at, undone_by, imported_by = marks
    return Record(
        number,
        at,
        person,
        Entry(kind, subject, value),
        place=Place(dictionary, weights, feature),
        undone_at=undone_at,
        undone_by=undone_by,
        imported_by=imported_by,
    )


def _imported(line: int, row: Any) -> list[Any]:
    """The columns of an exported entry; raises `EntryError` with the line if it is none."""
    if not isinstance(row, dict) or row.get("undone_at") is not None:
        raise EntryError(f"line {line}: an entry that counts is wanted, as an export without all=true has it")
    try:
        entry = checked(row.get("kind"), row.get("subject"), row.get("value"))
    except EntryError as error:
        raise EntryError(f"line {line}: {error}") from None
    texts = [row.get(name) for name in ("at", "person", "dictionary", "weights")]
    feature = row.get("feature")
    is_whole = all(isinstance(text, str) and 0 < len(text) <= 256 for text in texts)
    if (
        not is_whole
        or not PERSON.fullmatch(str(row["person"]))
        or type(feature) is not int
        or not 0 <= feature < 1 << 31
    ):
        raise EntryError(f"line {line}: at, person, dictionary, weights and the number of a feature are wanted")
    return [*texts, feature, entry.kind, entry.subject, entry.value]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
