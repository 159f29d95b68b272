"""The bytes that every token of a tokenizer stands for, so that text can be shown without the tokenizer."""

from __future__ import annotations

import json
import re
from typing import Any


def _byte_level_alphabet() -> dict[str, int]:
    """Printable stand-in -> byte, as byte-level BPE writes its vocabulary (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in printable]
    return table | {chr(256 + n): b for n, b in enumerate(others)}


def n_ids(tokenizer: Any) -> int:
    """One more than the largest token id; where a vocabulary has holes, more than it has tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def token_bytes(tokenizer: Any) -> list[bytes]:
    """UTF-8 bytes of every token id, 0 .. `n_ids` - 1; parts of a character stay parts, and a hole is empty."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(n_ids(tokenizer))))
    special = set(tokenizer.all_special_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
    if "ByteLevel" in decoder:
        alphabet = _byte_level_alphabet()

        def spell(piece: str) -> bytes:
            return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else piece.encode()
    else:

        def spell(piece: str) -> bytes:
            match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
            return bytes([int(match[1], 16)]) if match else piece.replace("\u2581", " ").encode()

    return [
        (piece or "").encode() if number in special or piece is None else spell(piece)
        for number, piece in enumerate(pieces)
    ]
