"""Cuts a stream of text into contexts of token ids, in memory-mapped files: packed, split by document, resumable."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt
from pydantic import Field

from sae.errors import ArtefactError, DataError
from sae.foundation.files import read_sealed, write_sealed
from sae.foundation.screen import Progress
from sae.foundation.section import Count, Section
from sae.text import installed_docs
from sae.text.corpus import InstalledDocs, TextSource
from sae.text.hashed_file import HashedFile
from sae.text.mixture import Mixture, TokenizedDocument

REPLACEMENT = "\ufffd"
DOCUMENTS_PER_COMMIT = 256
TOKENS_PER_COMMIT = 1 << 20
UNEQUAL = 0.02  # a source's share of the tokens may differ from its weight's by so much without a word


class TextConfig(Section):
    """The text, how it is cut into contexts, and what is held out."""

    sources: tuple[TextSource, ...] = Field(min_length=1, description="One source, or a mixture with weights.")
    ctx_len: Count = Field(default=128, ge=2, le=1 << 20, description="Tokens per context, the BOS included.")
    packing: Literal["joined", "separate"] = Field(
        default="joined",
        description="joined: documents share attention in a context. separate: each sees only itself, and begins, like its "
        "continuation in the next context, at position 0 with a BOS of its own.",
    )
    held_out_fraction: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Share of documents held out from training, by a hash that near-duplicates share.",
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

    def document_keys(self) -> UInt[np.ndarray, " documents"]:
        """Similarity key of every document, by index."""
        return np.fromfile(self.folder / "documents.keys", "<u8")


class _ContextWriter:
    """Appends documents to one stream of contexts; after a commit, `state` is all that a resume needs."""

    def __init__(self, folder: Path, config: TextConfig, tokenizer: Any, bos: int | None, *, state: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        ctx_len, self.bos, self.dtype = config.ctx_len, bos, id_dtype(tokenizer)
        self.end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.is_separate = config.packing == "separate"
        self.width = ctx_len if self.is_separate else ctx_len - (bos is not None)
        self.state = {"n_contexts": 0, "n_documents": 0, "names_bytes": 0, "tail": [], "tail_documents": [], **state}
        row_bytes = ctx_len * np.dtype(self.dtype).itemsize
        sizes = {
            "ids.bin": self.state["n_contexts"] * row_bytes,
            "documents.bin": self.state["n_contexts"] * ctx_len * 4,
            "documents.txt": self.state["names_bytes"],
            "documents.keys": self.state["n_documents"] * 8,
        }
        known = self.state.get("sha256", {})
        self._files = [HashedFile(folder / name, size, known.get(name)) for name, size in sizes.items()]
        self._ids, self._documents, self._names, self._keys = self._files

    def add(self, documents: list[TokenizedDocument]) -> None:
        """Appends whole documents, each followed by the end-of-sequence token if the tokenizer has one."""
        ids = [np.array(self.state["tail"], np.int64)]
        owners = [np.array(self.state["tail_documents"], np.int64)]
        place = len(self.state["tail"])

        for document in documents:
            stream = np.concatenate([document.token_ids, self.end]).astype(np.int64)
            if self.is_separate and self.bos is not None:
                stream = _with_bos(stream, self.bos, place, self.width)
            ids.append(stream)
            owners.append(np.full(len(stream), self.state["n_documents"]))
            place = (place + len(stream)) % self.width
            self.state["names_bytes"] += self._names.write((json.dumps(document.name) + "\n").encode())
            self._keys.write(document.key.to_bytes(8, "little"))
            self.state["n_documents"] += 1

        self._write_contexts(np.concatenate(ids), np.concatenate(owners))

    def _write_contexts(self, ids: Int[np.ndarray, " tokens"], owners: Int[np.ndarray, " tokens"]) -> None:
        """Writes the contexts that are full, and keeps the rest for the next documents."""
        n_full_contexts = len(ids) // self.width
        cut = n_full_contexts * self.width
        block = ids[:cut].astype(self.dtype).reshape(n_full_contexts, self.width)
        owner_block = owners[:cut].astype("<u4").reshape(n_full_contexts, self.width)
        if self.bos is not None and not self.is_separate:
            block = np.insert(block, 0, self.bos, axis=1)
            owner_block = np.concatenate([owner_block[:, :1], owner_block], axis=1)

        self._ids.write(block.tobytes())
        self._documents.write(owner_block.tobytes())
        self.state["n_contexts"] += n_full_contexts
        self.state["tail"], self.state["tail_documents"] = ids[cut:].tolist(), owners[cut:].tolist()

    def close(self) -> None:
        """Closes the files; the next opening cuts off everything that was not committed."""
        for file in self._files:
            file.close()

    def commit(self) -> None:
        """Makes everything added so far durable."""
        self.state["sha256"] = {file.path.name: file.commit() for file in self._files}


def id_dtype(tokenizer: Any) -> str:
    """The numbers in which token ids are stored: as narrow as the vocabulary allows."""
    return "<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4"


def _with_bos(tokens: Int[np.ndarray, " tokens"], bos: int, place: int, width: int) -> Int[np.ndarray, " longer"]:
    """A document's tokens that begin at `place` of a context of `width`, with a BOS there and in every further one."""
    first = tokens[: max(width - place - 1, 0)]
    rest = tokens[len(first) :]
    starts = np.arange(0, len(rest), width - 1)
    return np.concatenate([[bos], first, np.insert(rest, starts, bos)])


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
    bos = tokenizer.bos_token_id if prepend_bos else None
    position_file = folder / "position.json"
    position = _position(position_file) if position_file.exists() else {}
    needed_contexts = {
        "train": -(-n_tokens // config.ctx_len),
        "held_out": -(-config.held_out_tokens // config.ctx_len),
    }
    with ExitStack() as stack:
        writers = {
            name: _ContextWriter(folder / name, config, tokenizer, bos, state=position.get(name, {}))
            for name in needed_contexts
        }
        for writer in writers.values():
            stack.callback(writer.close)

        def short(name: str) -> bool:
            return writers[name].state["n_contexts"] < needed_contexts[name]

        mixture = Mixture(
            config.sources,
            tokenizer,
            lambda document: not (short("train") and document.is_held_out(config.held_out_fraction)),
            n_read=position.get("documents_read"),
            tokens=position.get("tokens"),
            sha256=position.get("sources_sha256"),
        )
        while (short("train") or short("held_out")) and (batch := _next_batch(mixture)):
            for name, writer in writers.items():
                is_wanted = name == "held_out"
                picked = [d for d in batch if d.is_held_out(config.held_out_fraction) == is_wanted]
                if picked and short(name):
                    writer.add(picked)
                writer.commit()
            position = _position_after(batch, position, mixture, writers)
            write_sealed(position_file, position)
            progress.update(min(writers["train"].state["n_contexts"] * config.ctx_len, n_tokens), n_tokens)

    _say_what_differs(config, mixture, position, progress)
    n_contexts = {name: min(writers[name].state["n_contexts"], needed_contexts[name]) for name in needed_contexts}
    _check_enough(config, needed_contexts, n_contexts, position)
    train, held_out = (
        Contexts(folder / n, config.ctx_len, prepend_bos, id_dtype(tokenizer), n_contexts=n_contexts[n])
        for n in needed_contexts
    )
    return train, held_out


def read_whole(
    config: TextConfig, tokenizer: Any, *, prepend_bos: bool, n_tokens: int, folder: Path, progress: Progress
) -> Contexts:
    """At most `n_tokens` tokens of the sources as one stream, with nothing held out; not resumable."""
    bos = tokenizer.bos_token_id if prepend_bos else None
    n_needed = -(-n_tokens // config.ctx_len)
    mixture = Mixture(config.sources, tokenizer, lambda _: True)
    writer = _ContextWriter(folder, config, tokenizer, bos, state={})
    while writer.state["n_contexts"] < n_needed and (batch := _next_batch(mixture)):
        writer.add(batch)
        progress.update(min(writer.state["n_contexts"], n_needed), n_needed)
    writer.commit()
    writer.close()
    n_contexts = min(writer.state["n_contexts"], n_needed)
    if n_contexts == 0:
        raise DataError(f"text: the sources gave fewer tokens than one context of {config.ctx_len}. Give more text.")

    return Contexts(folder, config.ctx_len, prepend_bos, id_dtype(tokenizer), n_contexts=n_contexts)


def _position(path: Path) -> dict[str, Any]:
    """How far the text has been read; raises `ArtefactError` if the file is not that."""
    position = read_sealed(path)
    if not {"train", "held_out", "documents_read", "tokens", "sha256"} <= position.keys():
        raise ArtefactError(f"{path}: not a position in the text; the file is damaged, or of an earlier saedex.")
    return position


def _position_after(
    batch: list[TokenizedDocument], position: dict[str, Any], mixture: Mixture, writers: dict[str, _ContextWriter]
) -> dict[str, Any]:
    """All that a resume needs, after the documents of a batch."""
    digest = position.get("sha256", "")
    for document in batch:
        digest = hashlib.sha256((digest + document.text).encode("utf-8", "replace")).hexdigest()
    n_replaced = position.get("documents_replaced", 0)
    n_replaced += sum(document.is_spelled and REPLACEMENT in document.text for document in batch)

    return {name: writer.state for name, writer in writers.items()} | {
        "documents_read": mixture.n_read,
        "tokens": mixture.tokens,
        "sources_sha256": mixture.sha256,
        "sha256": digest,
        "documents_replaced": n_replaced,  # they hold U+FFFD, which stands for bytes that are not UTF-8
    }


def _next_batch(mixture: Mixture) -> list[TokenizedDocument]:
    """The documents until the next commit; [] at the end."""
    batch, n_tokens = [], 0
    while len(batch) < DOCUMENTS_PER_COMMIT and n_tokens < TOKENS_PER_COMMIT and (next_ := mixture.next_document()):
        batch.append(next_)
        n_tokens += len(next_.token_ids)
    return batch


def _say_what_differs(config: TextConfig, mixture: Mixture, position: dict[str, Any], progress: Progress) -> None:
    """Says which sources ended before the others, what that does to their shares, and what was replaced."""
    total, weights = max(sum(mixture.tokens), 1), sum(mixture.weights)
    for number in mixture.ended:
        share, wanted = mixture.tokens[number] / total, mixture.weights[number] / weights
        if wanted - share > UNEQUAL:
            progress.say(
                f"text.sources.{number} ({config.sources[number].source}) ended after {mixture.tokens[number]:,} tokens: "
                f"its share is {share:.2f} instead of {wanted:.2f}."
            )
    if n_replaced := position.get("documents_replaced", 0):
        progress.say(f"text: {n_replaced:,} documents hold U+FFFD, which stands for bytes that are not UTF-8.")


def _check_enough(
    config: TextConfig, needed_contexts: dict[str, int], n_contexts: dict[str, int], position: dict[str, Any]
) -> None:
    for name, n_needed in needed_contexts.items():
        if n_contexts[name] >= (n_needed if config.on_end == "fail" else 1):
            continue
        n_documents = sum(position[stream]["n_documents"] for stream in needed_contexts) if position else 0
        n_tokens, n_tokens_read = n_needed * config.ctx_len, n_contexts[name] * config.ctx_len
        said = f"text: the config needs {n_tokens:,} {name} tokens, the sources gave {n_tokens_read:,}"
        if position and position[name]["n_documents"] == 0 and n_documents:
            raise DataError(
                f"{said}: all of their {n_documents:,} documents fell to the other stream. Whole documents are held out, "
                "near-duplicates together: give more and different documents, or another text.held_out_fraction."
            )
        advice = "Add text, or lower train.tokens or text.held_out_tokens"
        raise DataError(f"{said}. {advice}" + (", or set text.on_end: stop." if config.on_end == "fail" else "."))


def _without_folders(facts: Any) -> Any:
    """The facts with files of this machine named without their folders: cards are published."""
    if isinstance(facts, dict):
        return {key: _without_folders(value) for key, value in facts.items()}
    if isinstance(facts, list):
        return [_without_folders(value) for value in facts]
    is_here = isinstance(facts, str) and (Path(facts).is_absolute() or facts.startswith("~"))
    return Path(facts).name if is_here else facts


def manifest(config: TextConfig, folder: Path) -> dict[str, Any]:
    """What the corpus was: sources without the folders of this machine, hash of the text, documents and tokens per source, documents with bytes that are not
    UTF-8, and versions of the packages it was read from.
    """
    position = _position(folder / "position.json")
    about = {
        "sources": [_without_folders(source.model_dump(mode="json")) for source in config.sources],
        "sha256": position["sha256"],
        "documents_read": position["documents_read"],
        "tokens_read": position["tokens"],
        "documents_replaced": position["documents_replaced"],
    }
    if any(isinstance(source, InstalledDocs) for source in config.sources):
        about["installed"] = installed_docs.versions()

    return about
