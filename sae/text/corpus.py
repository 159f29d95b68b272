"""Streams of text documents from datasets, packages or the installed distributions, and mixtures of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from sae.errors import DataError, UnavailableError
from sae.foundation.downloads import PackagePart, open_members
from sae.foundation.section import Count, Section
from sae.text import installed_docs
from sae.text.reread import NOTHING_READ, RereadStream


class Document(NamedTuple):
    """One text and the name that a reader can find it by."""

    name: str
    text: str


class _Weighted(Section):
    weight: float = Field(default=1.0, gt=0, description="Share of this source's tokens in a mixture.")


class InstalledDocs(_Weighted):
    """Docstrings and READMEs of the distributions installed beside saedex: no download, no account."""

    source: Literal["installed-docs"] = Field(description="Where the text comes from.")
    min_chars: Count = Field(default=200, ge=1, description="Shorter docstrings are left out.")


class DatasetText(_Weighted):
    """Any data set that `datasets` streams: a hub repository, or local parquet, json, csv or text files."""

    source: Literal["datasets"] = Field(description="Where the text comes from.")
    path: str = Field(min_length=1, description="Hub repository, or one of parquet, json, csv, text.")
    data_files: tuple[str, ...] | None = Field(
        default=None, description="Local files or globs, for the four file formats."
    )
    name: str | None = Field(default=None, description="Configuration of the data set, if it has several.")
    split: str = Field(default="train", description="Split to read.")
    revision: str | None = Field(default=None, description="Commit that pins a hub data set.")
    column: str = Field(default="text", description="Column that holds the text.")

    def absolute(self) -> DatasetText:
        """The same settings with absolute paths; addresses stay as they are."""
        files = self.data_files and tuple(
            f if "://" in f else str(Path(f).expanduser().absolute()) for f in self.data_files
        )
        return self.model_copy(update={"data_files": files})

    @model_validator(mode="after")
    def _files(self) -> DatasetText:
        if self.path in ("parquet", "json", "csv", "text") and not self.data_files:
            raise ValueError(f"path {self.path!r} reads files: give `data_files`")
        return self


class PackageText(_Weighted):
    """Text files inside a package of the package index."""

    source: Literal["package"] = Field(description="Where the text comes from.")
    part: PackagePart = Field(description="The package and the members to read.")


TextSource = Annotated[InstalledDocs | DatasetText | PackageText, Field(discriminator="source")]


def documents(source: InstalledDocs | DatasetText | PackageText) -> Iterator[Document]:
    """The documents of one source in a fixed order."""
    if isinstance(source, DatasetText):
        yield from _dataset_documents(source)
    elif isinstance(source, InstalledDocs):
        yield from (Document(name, text) for name, text in installed_docs.documents(source.min_chars))
    else:
        yield from _package_documents(source.part)


def _package_documents(part: PackagePart) -> Iterator[Document]:
    for name, stream in open_members(part):
        yield Document(f"{part.name}/{name}", stream.read().decode("utf-8", errors="replace"))


def _dataset_documents(source: DatasetText) -> Iterator[Document]:
    from datasets import load_dataset

    files = list(source.absolute().data_files or ()) or None

    try:
        stream: Any = load_dataset(
            source.path,
            source.name,
            split=source.split,
            data_files=files,
            revision=source.revision,
            streaming=True,
        )
    except StopIteration:
        raise DataError(f"text source {source.path!r}: the files are empty.") from None
    except ConnectionError as error:
        raise UnavailableError(f"text source {source.path!r}: {error}. Check the name and the network.") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"text source {source.path!r}: datasets cannot open it: {error}") from None

    rows = iter(stream)
    number = 0

    while (row := _next_row(rows, source.path)) is not None:
        if source.column not in row:
            column_names = ", ".join(row)
            raise DataError(f"text source {source.path!r}: no column {source.column!r}. Columns: {column_names}.")
        yield Document(f"{source.path}#{number}", row[source.column] or "")
        number += 1


def _next_row(rows: Iterator[Any], path: str) -> Any:
    """The next row, or None at the end; raises `DataError` if `datasets` cannot read it."""
    try:
        return next(rows, None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"text source {path!r}: datasets cannot read it (empty or damaged?): {error}") from None


class Mixture:
    """Documents of several sources, mixed by weight; a stopped run resumes at the same position.

    The next document comes from the source with the smallest `tokens taken / weight`, so the order is a
    function of the sources alone. `taken` (documents) and `tokens` per source are the whole position; `sha256` are
    the hashes of what was read.
    """

    def __init__(
        self,
        sources: tuple[Any, ...],
        taken: list[int] | None = None,
        tokens: list[int] | None = None,
        sha256: list[str] | None = None,
    ):
        self.sources = sources
        self.taken = list(taken or [0] * len(sources))
        self.tokens = list(tokens or [0] * len(sources))
        read = zip(sources, self.taken, sha256 or [NOTHING_READ if n == 0 else None for n in self.taken], strict=True)
        self._streams = [RereadStream(f"text.sources.{i}", documents(s), n, h) for i, (s, n, h) in enumerate(read)]
        self._live = set(range(len(sources)))

    @property
    def sha256(self) -> list[str]:
        """The hash of all documents that were read, by source."""
        return [stream.sha256 for stream in self._streams]

    def next_document(self) -> tuple[int, Document] | None:
        """(index of the source, document), or None at the end of every source."""
        while self._live:
            source_index = min(self._live, key=lambda i: (self.tokens[i] / self.sources[i].weight, i))
            document = next(self._streams[source_index], None)
            if document is None:
                self._live.discard(source_index)
                continue
            self.taken[source_index] += 1
            return source_index, document
        return None
