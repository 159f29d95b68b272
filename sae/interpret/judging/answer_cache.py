"""A judge's answers on disk, so that none is paid for twice."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from sae.errors import ArtefactError


class AnswerCache:
    """Answers by model and hash of the prompt, each with the probabilities of its yes and no if they were requested."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path)
        try:
            self._file.execute(
                "create table if not exists said (model text, prompt text, logprobs bool, text text, chances text, "
                "primary key (model, prompt, logprobs))"
            )
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise ArtefactError(f"{path}: {error}. Remove it: the judge is then asked again.") from None
        if self._file.execute("select 1 from sqlite_master where name = 'answer'").fetchone():  # of an earlier version
            with self._file:
                self._file.execute("insert or ignore into said select model, prompt, false, text, 'null' from answer")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def get(self, model: str, prompt: str, logprobs: bool) -> tuple[str, list[float] | None] | None:
        """(text, probabilities), or None if this was not asked before."""
        with closing(self._file.cursor()) as cursor:
            row = cursor.execute(
                "select text, chances from said where model = ? and prompt = ? and logprobs >= ? order by logprobs",
                (model, prompt, logprobs),
            ).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def put(self, model: str, prompt: str, logprobs: bool, text: str, *, yes_probabilities: list[float] | None) -> None:
        """Keeps an answer."""
        with self._file:
            self._file.execute(
                "insert or replace into said values (?, ?, ?, ?, ?)",
                (model, prompt, logprobs, text, json.dumps(yes_probabilities)),
            )
