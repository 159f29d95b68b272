"""Cuts a stream of text into contexts of token ids, in memory-mapped files: packed, split by document, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt
from pydantic import Field

from sae.errors import DataError
from sae.foundation.files import write_json
from sae.foundation.screen import Progress
from sae.foundation.section import Count, Section
from sae.text import installed_docs
from sae.text.corpus import InstalledDocs, Mixture, TextSource

DOCUMENTS_PER_BATCH = 256


class TextConfig(Section):
    """The text, how it is cut into contexts, and what is held out."""

    sources: tuple[TextSource, ...] = Field(min_length=1, description="One source, or a mixture with weights.")
    ctx_len: Count = Field(default=128, ge=2, le=1 << 20, description="Tokens per context, the BOS included.")
    packing: Literal["joined", "separate"] = Field(
        default="joined", description="joined: documents share attention in a context; separate: each sees only itself."
    )
    held_out_fraction: float = Field(
        default=0.05, gt=0, lt=0.5, description="Share of documents held out from training, chosen by hash."
    )
    held_out_tokens: Count = Field(
        default=65_536, ge=2, description="Tokens of the held-out stream used for evaluation."
    )
    on_end: Literal["fail", "stop"] = Field(
        default="fail",
        description="If the text is shorter than train.tokens: fail raises an error, stop trains on what there is.",
    )


@dataclass(frozen=True)
class Contexts:
    """A read-only, memory-mapped stream of contexts and the documents that its tokens belong to."""

    folder: Path
    ctx_len: int
    prepend_bos: bool
    dtype: str
    n_contexts: int

    @property
    def ids(self) -> UInt[np.ndarray, "contexts ctx_len"]:
        """Token ids, [contexts, ctx_len]."""
        shape = (self.n_contexts, self.ctx_len)
        return np.memmap(self.folder / "ids.bin", dtype=self.dtype, mode="r", shape=shape)

    @property
    def documents(self) -> UInt[np.ndarray, "contexts ctx_len"]:
        """Index of the document of every token, [contexts, ctx_len]."""
        shape = (self.n_contexts, self.ctx_len)
        return np.memmap(self.folder / "documents.bin", dtype="<u4", mode="r", shape=shape)

    def document_names(self) -> list[str]:
        """Name of every document, by index."""
        with (self.folder / "documents.txt").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


class _ContextWriter:
    """Appends documents to one stream of contexts; after a commit, `state` is all that a resume needs."""

    def __init__(
        self, folder: Path, ctx_len: int, bos: int | None, eos: int | None, *, dtype: str, state: dict[str, Any]
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.bos, self.eos, self.dtype = folder, bos, eos, dtype
        self.width = ctx_len - (bos is not None)
        self.state = {"n_contexts": 0, "n_documents": 0, "names_bytes": 0, "tail": [], "tail_documents": [], **state}
        row_bytes = ctx_len * np.dtype(dtype).itemsize
        self._ids = _open_at(folder / "ids.bin", self.state["n_contexts"] * row_bytes)
        self._documents = _open_at(folder / "documents.bin", self.state["n_contexts"] * ctx_len * 4)
        self._names = _open_at(folder / "documents.txt", self.state["names_bytes"])

    def add(self, names: list[str], token_lists: list[list[int]]) -> None:
        """Appends whole documents, each followed by the end-of-sequence token if the tokenizer has one."""
        ids, owners = list(self.state["tail"]), list(self.state["tail_documents"])
        end = [] if self.eos is None else [self.eos]

        for name, tokens in zip(names, token_lists, strict=True):
            ids += tokens + end
            owners += [self.state["n_documents"]] * (len(tokens) + len(end))
            self.state["names_bytes"] += self._names.write((json.dumps(name) + "\n").encode())
            self.state["n_documents"] += 1

        n_full_contexts = len(ids) // self.width
        cut = n_full_contexts * self.width
        block = np.asarray(ids[:cut], dtype=self.dtype).reshape(n_full_contexts, self.width)
        owner_block = np.asarray(owners[:cut], dtype="<u4").reshape(n_full_contexts, self.width)
        if self.bos is not None:
            block = np.insert(block, 0, self.bos, axis=1)
            owner_block = np.concatenate([owner_block[:, :1], owner_block], axis=1)

        self._ids.write(block.tobytes())
        self._documents.write(owner_block.tobytes())
        self.state["n_contexts"] += n_full_contexts
        self.state["tail"], self.state["tail_documents"] = ids[cut:], owners[cut:]

    def close(self) -> None:
        """Closes the files; the next opening cuts off everything that was not committed."""
        for file in (self._ids, self._documents, self._names):
            file.close()

    def commit(self) -> None:
        """Makes everything added so far durable."""
        for file in (self._ids, self._documents, self._names):
            file.flush()
            os.fsync(file.fileno())


def _open_at(path: Path, size: int) -> Any:
    """`path` open for appending after its first `size` bytes; what lies beyond was never committed."""
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out stream: a function of its text alone."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def build(
    config: TextConfig,
    tokenizer: Any,
    *,
    prepend_bos: bool,
    n_tokens: int,
    folder: Path,
    progress: Progress,
) -> tuple[Contexts, Contexts]:
    """(training contexts, held-out contexts) under `folder`; continues where an earlier call stopped.

    Raises `DataError` if the text is shorter than the config wants and `on_end` is "fail".
    """
    dtype = "<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4"
    bos = tokenizer.bos_token_id if prepend_bos else None
    position_file = folder / "position.json"
    position = json.loads(position_file.read_text()) if position_file.exists() else {}
    needed_contexts = {
        "train": -(-n_tokens // config.ctx_len),
        "held_out": -(-config.held_out_tokens // config.ctx_len),
    }
    with ExitStack() as stack:
        writers = {
            name: _ContextWriter(
                folder / name, config.ctx_len, bos, tokenizer.eos_token_id, dtype=dtype, state=position.get(name, {})
            )
            for name in needed_contexts
        }
        for writer in writers.values():
            stack.callback(writer.close)
        mixture = Mixture(config.sources, position.get("taken"), position.get("tokens"))
        digest = position.get("sha256", "")

        def short(name: str) -> bool:
            return writers[name].state["n_contexts"] < needed_contexts[name]

        while (short("train") or short("held_out")) and (batch := _next_batch(mixture, tokenizer)):
            for name, writer in writers.items():
                is_wanted = name == "held_out"
                picked = [d for d in batch if is_held_out(d.text, config.held_out_fraction) == is_wanted]
                if picked and short(name):
                    writer.add([d.name for d in picked], [d.token_ids for d in picked])
                writer.commit()
            text = "".join(document.text for document in batch)
            digest = hashlib.sha256((digest + text).encode("utf-8", "replace")).hexdigest()
            position = {name: writer.state for name, writer in writers.items()}
            position |= {"taken": mixture.taken, "tokens": mixture.tokens, "sha256": digest}
            write_json(position_file, position)
            progress.update(min(writers["train"].state["n_contexts"] * config.ctx_len, n_tokens), n_tokens)

    n_contexts = {name: min(writers[name].state["n_contexts"], needed_contexts[name]) for name in needed_contexts}
    _check_enough(config, needed_contexts, n_contexts)
    train, held_out = (
        Contexts(folder / n, config.ctx_len, prepend_bos, dtype, n_contexts=n_contexts[n]) for n in needed_contexts
    )
    return train, held_out


def _check_enough(config: TextConfig, needed_contexts: dict[str, int], n_contexts: dict[str, int]) -> None:
    for name, n_needed in needed_contexts.items():
        if n_contexts[name] < (n_needed if config.on_end == "fail" else 1):
            n_tokens, n_tokens_read = n_needed * config.ctx_len, n_contexts[name] * config.ctx_len
            raise DataError(
                f"text: the config needs {n_tokens:,} {name} tokens, the sources gave {n_tokens_read:,}. "
                "Add text, lower train.tokens or text.held_out_tokens, or set text.on_end: stop."
            )


class TokenizedDocument(NamedTuple):
    """A document's name, its text, and the text's token ids without special tokens."""

    name: str
    text: str
    token_ids: list[int]


def _next_batch(mixture: Mixture, tokenizer: Any) -> list[TokenizedDocument]:
    """The next documents; empty texts are passed over; [] at the end."""
    drawn = []
    while len(drawn) < DOCUMENTS_PER_BATCH and (item := mixture.next_document()):
        chosen, document = item
        if document.text.strip():
            drawn.append((chosen, document))
        # A character count stands in for tokens until the batch is tokenized, so that the draw can go on.
        mixture.tokens[chosen] += len(document.text) // 4

    if not drawn:
        return []

    texts = [document.text.encode("utf-8", "replace").decode() for _, document in drawn]
    token_lists = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    return [TokenizedDocument(d.name, t, ids) for (_, d), t, ids in zip(drawn, texts, token_lists, strict=True)]


def manifest(config: TextConfig, folder: Path) -> dict[str, Any]:
    """What the corpus was: sources, hash of the text, documents per source, and versions of the packages it was read
    from.
    """
    position = json.loads((folder / "position.json").read_text())
    about = {
        "sources": [source.model_dump(mode="json") for source in config.sources],
        "sha256": position["sha256"],
        "documents_read": position["taken"],
    }
    if any(isinstance(source, InstalledDocs) for source in config.sources):
        about["installed"] = installed_docs.versions()

    return about
