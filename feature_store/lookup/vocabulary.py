"""The text of a store's tokens; stores of one tokenizer share it."""

from __future__ import annotations

import hashlib
from functools import cached_property
from weakref import WeakValueDictionary

LONGEST_CHARACTER = 4  # bytes of UTF-8


class Vocabulary:
    """The bytes of every token id, and texts as people read them."""

    def __init__(self, tokens: dict[int, bytes]):
        self.tokens = tokens

    @cached_property
    def whole(self) -> dict[int, str]:
        """Texts of the tokens that hold whole characters only."""
        texts = {}
        for token, data in self.tokens.items():
            try:
                texts[token] = data.decode("utf-8")
            except UnicodeDecodeError:
                continue
        return texts

    def texts(self, ids: list[int]) -> list[str]:
        """Display text of each token. A character split over tokens is shown whole on its last one."""
        try:
            return [self.whole[token] for token in ids]
        except KeyError:
            return self._texts_of_pieces(ids)

    def _texts_of_pieces(self, ids: list[int]) -> list[str]:
        pieces, pending = [], b""
        for token in ids:
            pending += self.tokens.get(token, b"")
            try:
                pieces.append(pending.decode("utf-8"))
                pending = b""
            except UnicodeDecodeError:
                if len(pending) < LONGEST_CHARACTER:
                    pieces.append("")
                else:
                    pieces.append(pending.decode("utf-8", "replace"))
                    pending = b""

        if pending and pieces:
            pieces[-1] += pending.decode("utf-8", "replace")

        return pieces

    def shown(self, token: int) -> str:
        """Display text of one token on its own."""
        return self.tokens.get(token, b"").decode("utf-8", "replace")

    def like(self, text: str) -> list[int]:
        """Ids of the tokens whose text equals `text`, both stripped and in lower case."""
        return self.by_text.get(text.strip().lower(), [])

    @cached_property
    def by_text(self) -> dict[str, list[int]]:
        """Token ids by their text, stripped and in lower case."""
        tokens: dict[str, list[int]] = {}
        for token in self.tokens:
            tokens.setdefault(self.shown(token).strip().lower(), []).append(token)
        return tokens

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.tokens.values()), default=0)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Token ids by their bytes; the smallest of several."""
        return {data: token for token, data in sorted(self.tokens.items(), reverse=True) if data}

    def split(self, text: str) -> list[int]:
        """The tokens of a text, always the longest that fits: nearly as the tokenizer cuts it, which no store holds.

        Words after the first get the space before them; bytes that begin no token are passed over.
        """
        data, place, ids = text.encode(), 0, []
        while place < len(data):
            for length in range(min(self.longest, len(data) - place), 0, -1):
                if (token := self.by_bytes.get(data[place : place + length])) is not None:
                    ids.append(token)
                    place += length
                    break
            else:
                place += 1
        return ids


_shared: WeakValueDictionary[bytes, Vocabulary] = WeakValueDictionary()


def shared(rows: list[tuple[int, bytes]]) -> Vocabulary:
    """The vocabulary of these (token, bytes); the same object for all stores that have the same."""
    digest = hashlib.sha256()
    for token, data in rows:
        digest.update(token.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data)
    key = digest.digest()
    vocabulary = _shared.get(key)
    if vocabulary is None:
        vocabulary = _shared[key] = Vocabulary(dict(rows))
    return vocabulary
