"""`sae people`: the file of what people say of features: keys, export and import."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from feature_store.people.database import SCOPES, People, PeopleError
from feature_store.people.entry import EntryError
from sae.commands.command import Command
from sae.errors import ArtefactError, ConfigError, DataError

MEANINGS = "read (with `sae serve --auth`), rate (blind ratings and votes), write (labels, notes, tags, lists too), admin (export of all, import, undoing others' entries)"


@final
class PeopleCommand(Command):
    """Manages keys, and takes entries out and in."""

    name = "people"
    help = "keys for people who label features in the explorer; export and import of what they said"
    order = 45
    epilog = "The file is the one of `sae serve RUN --people FILE`; it may be used while the server runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The file, and what to do with it."""
        parser.add_argument("file", type=Path, metavar="FILE", help="SQLite file, for example people.sqlite")
        verbs = parser.add_subparsers(required=True, metavar="command")

        add = verbs.add_parser(
            "add", help="give somebody a key; it is printed once", description=f"Scopes: {MEANINGS}."
        )
        add.add_argument("name", help="who gets it")
        add.add_argument("--scopes", default="read,write", help=f"some of {','.join(SCOPES)} (default: read,write)")
        add.set_defaults(work=_add)

        verbs.add_parser("keys", help="list who has a key").set_defaults(work=_keys)

        revoke = verbs.add_parser("revoke", help="make a key worthless; what its owner said stays")
        revoke.add_argument("name", help="whose key")
        revoke.set_defaults(work=_revoke)

        export = verbs.add_parser("export", help="print entries as JSON lines")
        export.add_argument("--all", action="store_true", help="also what was replaced or undone: the audit")
        export.set_defaults(work=_export)

        take = verbs.add_parser("import", help="add exported entries; those that are there already are passed over")
        take.add_argument("entries", type=Path, help="file of JSON lines, as `export` prints them")
        take.set_defaults(work=_import)

    def run(self, arguments: Namespace) -> int:
        """Does what the verb says."""
        try:
            return arguments.work(arguments)
        except PeopleError as error:
            kind = ArtefactError if str(arguments.file) in str(error) else ConfigError
            raise kind(str(error)) from None


def _add(arguments: Namespace) -> int:
    people = People(arguments.file, create=True)
    key = people.add_key(arguments.name, arguments.scopes.split(","))
    print(key)
    print(
        f"{arguments.name} may {arguments.scopes}. The key is not shown again; the file holds its hash.",
        file=sys.stderr,
    )
    return 0


def _keys(arguments: Namespace) -> int:
    for key in People(arguments.file).key_records():
        state = f"revoked {key.revoked_at}" if key.revoked_at else "valid"
        print(f"{key.person}  {key.scopes}  given {key.created_at}  {state}")
    return 0


def _revoke(arguments: Namespace) -> int:
    People(arguments.file).revoke_key(arguments.name)
    return 0


def _export(arguments: Namespace) -> int:
    for record in People(arguments.file).records(everything=arguments.all):
        print(json.dumps(record.as_json(), ensure_ascii=False))
    return 0


def _import(arguments: Namespace) -> int:
    try:
        with arguments.entries.open(encoding="utf-8") as lines:
            rows = (json.loads(line) for line in lines if line.strip())
            n = People(arguments.file).import_records("import", rows)
    except EntryError as error:
        raise DataError(f"{arguments.entries}: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{arguments.entries}: not JSON lines in UTF-8 ({error}). Nothing was imported.") from None
    print(f"{n} entries imported")
    return 0
