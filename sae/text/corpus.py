"""Documents from datasets, packages or the installed distributions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from itertools import chain, islice
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from sae.errors import ConfigError, DataError, UnavailableError
from sae.foundation.downloads import PackagePart, open_members
from sae.foundation.section import Count, Section, without_password
from sae.text import installed_docs
from sae.text.json_rows import rows

TABLES = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}  # by ending, as `datasets` calls them
FILE_FORMATS = ("parquet", "json", "csv", "text")
ROWS = 256  # read from a data set at a time

Content = str | list[int] | list[dict[str, Any]]  # a text, its token ids, or the messages of a chat


class Document(NamedTuple):
    """What a source holds of one document, and the name that a reader can find it by."""

    name: str
    content: Content


class _Weighted(Section):
    weight: float = Field(
        default=1.0, gt=0, description="This source's share of the tokens of a mixture, relative to the others."
    )


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
    sample_by: Literal["line", "paragraph", "document"] = Field(
        default="line", description="With path text: what of a file is one document."
    )
    column: str = Field(
        default="text",
        description="Column with texts, with chats (lists of messages with `role` and `content`, written out by the "
        "tokenizer's template) or with token ids.",
    )

    def with_paths(self, changed: Callable[[Path], Path]) -> DatasetText:
        """The same settings with other paths; addresses stay as they are."""
        files = self.data_files and tuple(f if "://" in f else str(changed(Path(f))) for f in self.data_files)
        return self.model_copy(update={"data_files": files})

    @model_validator(mode="after")
    def _files(self) -> DatasetText:
        for address in (self.path, *(self.data_files or ())):
            without_password(address)
        if self.path in FILE_FORMATS and not self.data_files:
            raise ValueError(f"path {self.path!r} reads files: give `data_files`")
        return self


class PackageText(_Weighted):
    """Text files inside a package of the package index."""

    source: Literal["package"] = Field(description="Where the text comes from.")
    part: PackagePart = Field(description="The package and the members to read.")
    markup: Literal["none", "mediawiki"] = Field(
        default="none",
        description="mediawiki: the members are dumps of a wiki (XML, perhaps bz2); every article is a document without "
        "markup. none: every member is a document.",
    )
    licence: str | None = Field(default=None, description="Licence of the text, for the card.")


class NoiseText(_Weighted):
    """Tokens drawn at random, every one of the vocabulary as likely as another: text without any structure, without end."""

    source: Literal["noise"] = Field(description="Where the text comes from.")
    tokens_per_document: Count = Field(default=512, ge=2, description="Tokens of a document.")
    seed: Count = Field(default=0, ge=0, description="Seed of the draws.")


AnySource = InstalledDocs | DatasetText | PackageText | NoiseText
TextSource = Annotated[AnySource, Field(discriminator="source")]


def source_named(text: str) -> InstalledDocs | DatasetText:
    """The source that a command line names: installed-docs, or files (a path, a folder or a glob) by their ending.

    .json, .jsonl, .csv and .parquet are read by their column `text`; any other file is one document. A folder is read with
    its subfolders; raises `ConfigError` if there are tables and other files in it.
    """
    if text == "installed-docs":
        return InstalledDocs(source="installed-docs")

    pattern = _pattern_of(text) if Path(text).expanduser().is_dir() else text
    return DatasetText(source="datasets", path=_kind_of(pattern), data_files=(pattern,), sample_by="document")


def _kind_of(name: str) -> str:
    """What `datasets` calls files of this ending, packed by gzip or not; all that are no tables are plain text."""
    return TABLES.get(Path(name.removesuffix(".gz")).suffix, "text")


def _pattern_of(folder: str) -> str:
    """The glob of the files in a folder and its subfolders; hidden ones are left out."""
    home = Path(folder).expanduser()
    names = [path.name for path in home.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(home))]
    endings = sorted(
        {"".join(Path(name).suffixes[-2:] if name.endswith(".gz") else Path(name).suffixes[-1:]) for name in names}
    )
    inside = f"{folder.rstrip('/')}/**/*"
    tables = [ending for ending in endings if _kind_of(f"x{ending}") != "text"]
    if tables and len(endings) > 1:
        raise ConfigError(
            f"{folder}: holds {', '.join(ending or 'files without an ending' for ending in endings)}. Say which are the text, "
            f"for example '{inside}{tables[0]}'."
        )
    return f"{inside}{tables[0]}" if tables else inside


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def described(source: AnySource) -> str:
    """What a source is, in a few words, without the folders of this machine."""
    if isinstance(source, InstalledDocs):
        return "the documentation of installed packages"
    if isinstance(source, NoiseText):
        return "tokens drawn at random"
    if isinstance(source, PackageText):
        kind = "wiki articles" if source.markup == "mediawiki" else "texts"
        return f"{kind} of the package {source.part.name}"
    return ", ".join(Path(file).name for file in source.data_files) if source.data_files else source.path


def documents(source: InstalledDocs | DatasetText | PackageText) -> Iterator[Document]:
    """The documents of one source, in a fixed order.

    Bytes that are not UTF-8 are read as U+FFFD. Raises `DataError` if the source cannot be read, or if a row of a data
    set holds something else than a text, a chat or token ids.
    """
    if isinstance(source, DatasetText):
        return _dataset_documents(source)
    if isinstance(source, InstalledDocs):
        return (Document(name, text) for name, text in installed_docs.documents(source.min_chars))
    return _package_documents(source)


def _package_documents(source: PackageText) -> Iterator[Document]:
    for name, stream in open_members(source.part):
        if source.markup == "mediawiki":
            from sae.text.wiki import articles

            yield from (Document(article.title, article.text) for article in articles(stream))
        else:
            yield Document(f"{source.part.name}/{name}", stream.read().decode("utf-8", errors="replace"))


def _dataset_documents(source: DatasetText) -> Iterator[Document]:
    values = chain.from_iterable(
        _json_values(source, file) if source.path == "json" and file else _table_values(source, file)
        for file in _files(source)
    )
    for number, value in enumerate(values):
        yield Document(f"{source.path}#{number}", _content(value, source, number))


def _json_values(source: DatasetText, file: str) -> Iterator[Any]:
    """The column's value in every row of a JSON file; None in rows without it, if others among the first have it."""
    columns: dict[str, None] = {}
    read = rows(file)
    first = list(islice(read, ROWS))
    for row in first:
        columns |= dict.fromkeys(row)
    if first and source.column not in columns:
        raise _no_column(source, columns)
    yield from (row.get(source.column) for row in chain(first, read))


def _table_values(source: DatasetText, file: str | None) -> Iterator[Any]:
    for table in _tables(source, file):
        if source.column not in table.column_names:
            raise _no_column(source, table.column_names)
        yield from _values(table[source.column])


def _no_column(source: DatasetText, columns: Iterable[str]) -> DataError:
    return DataError(f"text source {source.path!r}: no column {source.column!r}. Columns: {', '.join(columns)}.")


def _files(source: DatasetText) -> list[str | None]:
    """Every file of a source; one None for a data set that is not made of `data_files`.

    Files are read one by one, so that each may have columns of its own.
    """
    if not source.data_files:
        return [None]

    files = []
    for pattern in source.absolute().data_files or ():
        is_whole = "://" in pattern or Path(pattern).exists()
        matches = [pattern] if is_whole else sorted(filter(isfile, glob(pattern, recursive=True)))
        if not matches:
            raise DataError(f"text source {source.path!r}: no file matches data_files {pattern!r}.")
        files += matches

    return files


def _tables(source: DatasetText, file: str | None) -> Iterator[Any]:
    """The rows of a data set, or of one file of it, as Arrow tables of at most `ROWS` rows."""
    from datasets import load_dataset

    options: dict[str, Any] = {"encoding_errors": "replace"} if source.path in ("json", "csv", "text") else {}
    options |= {"sample_by": source.sample_by} if source.path == "text" else {}
    where = source.path if file is None else f"{source.path} {file}"

    try:
        stream: Any = load_dataset(
            source.path,
            source.name,
            split=source.split,
            data_files=None if file is None else [file],
            revision=source.revision,
            streaming=True,
            **options,
        )
        yield from stream.with_format("arrow").iter(batch_size=ROWS)
    except ConnectionError as error:
        raise UnavailableError(f"text source {where!r}: {error}. Check the name and the network.") from None
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        raise DataError(f"text source {where!r}: datasets cannot read it (empty or damaged?): {error}") from None


def _values(column: Any) -> Iterator[Any]:
    """The values of an Arrow column as Python's; texts keep every byte until they are decoded."""
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    for value in column.to_pylist():
        yield _from_json(value, column.type)


def _from_json(value: Any, kind: Any) -> Any:
    """A value of an Arrow type; `datasets` keeps values of several types in one column as JSON."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType) and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, list) and pa.types.is_list(kind):
        return [_from_json(item, kind.value_type) for item in value]
    return value


def _content(value: Any, source: DatasetText, number: int) -> Content:
    """A row's value as a document's content; nothing at all is an empty text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and {"role", "content"} <= set(item) for item in value):
        return value

    raise DataError(
        f"text source {source.path!r}, row {number}, column {source.column!r}: found {_type_said(value)}. "
        "Allowed are a text, a list of token ids, or a chat (a list of messages with `role` and `content`)."
    )


def _type_said(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    return f"a value of type {type(value).__name__}"
