"""Tokenized documents of several sources, mixed by their share of tokens; a stopped run resumes at the same place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sae.errors import DataError
from sae.text.corpus import AnySource, Content, Document, NoiseText, documents
from sae.text.noise import noise_documents
from sae.text.reread import NOTHING_READ, RereadStream
from sae.text.similarity import is_held_out, similarity_key

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one out; no tokenizer takes it
AHEAD_DOCUMENTS = 256  # tokenized at a time
AHEAD_CHARACTERS = 1 << 20  # tokenized at a time, and of a document; a longer one is read as several


class Part(NamedTuple):
    """A document, or a part of one that is too long to be tokenized at once: its name, text and similarity key.

    `token_ids` are those that the source gave instead of a text.
    """

    name: str
    text: str
    key: int
    token_ids: list[int] | None = None


class TokenizedDocument(NamedTuple):
    """A part with its token ids, without special tokens that the text does not spell out.

    `is_spelled` is False if the source gave token ids: what they decode to need not be whole characters.
    """

    name: str
    text: str
    key: int
    token_ids: Int[np.ndarray, " tokens"]
    is_spelled: bool = True

    def is_held_out(self, fraction: float) -> bool:
        """Whether it belongs to the held-out stream."""
        return is_held_out(self.key, fraction)


def parts(source: AnySource, tokenizer: Any) -> Iterator[Part]:
    """The parts of all documents of a source; those of one document share a similarity key."""
    is_noise = isinstance(source, NoiseText)
    for document in noise_documents(source, tokenizer) if is_noise else documents(source):
        text = _text(document, tokenizer)
        key = similarity_key(text)
        if isinstance(document.content, str) or not document.content or isinstance(document.content[0], dict):
            pieces = list(_pieces(text))
            for number, piece in enumerate(pieces, 1):
                suffix = f" (part {number})" if len(pieces) > 1 else ""
                yield Part(document.name + suffix, piece, key)
        else:
            yield Part(document.name, text, key, _known_ids(document, tokenizer))


def well_formed(text: str) -> str:
    """The text with U+FFFD in the place of every half of a surrogate pair."""
    return LONE_SURROGATE.sub("\ufffd", text)


def _text(document: Document, tokenizer: Any) -> str:
    """A document's content as text: a chat as the tokenizer's template writes it, token ids decoded."""
    content: Content = document.content
    if isinstance(content, str):
        return well_formed(content)
    if content and isinstance(content[0], dict):
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(f"text: {document.name} is a chat, and this model's tokenizer has no chat template.")
        return well_formed(tokenizer.apply_chat_template(content, tokenize=False))
    return tokenizer.decode(_known_ids(document, tokenizer), clean_up_tokenization_spaces=False)


def _known_ids(document: Document, tokenizer: Any) -> list[Any]:
    unknown = [token for token in document.content if not 0 <= int(token) < len(tokenizer)]  # pyright: ignore
    if unknown:
        raise DataError(
            f"text: {document.name} holds token id {unknown[0]}; the tokenizer has 0 to {len(tokenizer) - 1}."
        )
    return list(document.content)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of bounded length, cut at a line break or a space where there is one in the last quarter."""
    start = 0
    while len(text) - start > AHEAD_CHARACTERS:
        end = start + AHEAD_CHARACTERS
        least = end - AHEAD_CHARACTERS // 4
        cut = max(text.rfind("\n", least, end), text.rfind(" ", least, end))
        cut = end if cut < 0 else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


class TokenizedSource:
    """The documents of one source, tokenized some time ahead of their use; blank ones are passed over."""

    def __init__(
        self,
        where: str,
        source: AnySource,
        tokenizer: Any,
        *,
        n_read: int,
        sha256: str | None,
    ):
        self.n_read, self.sha256 = n_read, sha256 or NOTHING_READ
        expected = sha256 if n_read else NOTHING_READ
        self._parts = RereadStream(where, parts(source, tokenizer), n_read, expected)
        self._tokenizer = tokenizer
        self._ahead: list[tuple[Part, str]] = []  # with the hash of all that was read up to them
        self._token_ids: list[Int[np.ndarray, " tokens"]] = []

    def next_document(self) -> TokenizedDocument | None:
        """The next document with any text, or None at the end. `n_read` counts blank ones too."""
        while True:
            if not self._ahead:
                self._read_ahead()
            if not self._ahead:
                return None
            (part, self.sha256), token_ids = self._ahead.pop(), self._token_ids.pop()
            self.n_read += 1
            if part.text.strip():
                return TokenizedDocument(part.name, part.text, part.key, token_ids, is_spelled=part.token_ids is None)

    def _read_ahead(self) -> None:
        characters = 0
        while (
            len(self._ahead) < AHEAD_DOCUMENTS and characters < AHEAD_CHARACTERS and (part := next(self._parts, None))
        ):
            self._ahead.append((part, self._parts.sha256))
            characters += len(part.text)

        texts = [part.text for part, _ in self._ahead if part.token_ids is None]
        encoded = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else ())
        ids = [part.token_ids if part.token_ids is not None else next(encoded) for part, _ in self._ahead]
        self._ahead.reverse()
        self._token_ids = [np.asarray(i, dtype=np.int64) for i in reversed(ids)]


class Mixture:
    """Documents of several sources in proportion to their weights.

    The next document comes from the source with the smallest `tokens / weight`, so the order is a function of the
    sources alone. `tokens` counts documents for which `counts` is true: those of the training stream, whose shares are
    meant. `n_read` (documents) and `tokens` per source are the whole position; `sha256` are the hashes of
    what was read, which a resume compares.
    """

    def __init__(
        self,
        sources: tuple[Any, ...],
        tokenizer: Any,
        counts: Callable[[TokenizedDocument], bool],
        *,
        n_read: list[int] | None = None,
        tokens: list[int] | None = None,
        sha256: list[str] | None = None,
    ):
        self._counts = counts
        self.weights = [source.weight for source in sources]
        self.tokens = list(tokens or [0] * len(sources))
        places = zip(sources, n_read or [0] * len(sources), sha256 or [None] * len(sources), strict=True)
        self._streams = [
            TokenizedSource(f"text.sources.{number}", source, tokenizer, n_read=n, sha256=known)
            for number, (source, n, known) in enumerate(places)
        ]
        self.ended: list[int] = []  # sources without another document, in the order in which they ended

    @property
    def n_read(self) -> list[int]:
        """Documents read of every source, blank ones included."""
        return [stream.n_read for stream in self._streams]

    @property
    def sha256(self) -> list[str]:
        """The hash of all documents that were read, by source."""
        return [stream.sha256 for stream in self._streams]

    def next_document(self) -> TokenizedDocument | None:
        """The next document, or None at the end of every source."""
        while len(self.ended) < len(self._streams):
            live = (i for i in range(len(self._streams)) if i not in self.ended)
            source = min(live, key=lambda i: (self.tokens[i] / self.weights[i], i))
            document = self._streams[source].next_document()
            if document is None:
                self.ended.append(source)
                continue
            if self._counts(document):
                self.tokens[source] += max(len(document.token_ids), 1)
            return document
        return None
