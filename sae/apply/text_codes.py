"""Texts that people bring, as codes of a dictionary: the one loop over texts that every system here reads through."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from scipy.sparse import csr_array

from sae.architectures import SparseAutoencoder
from sae.architectures.settings import Batch, batch_of
from sae.errors import DataError
from sae.model.hookpoints import Channel
from sae.model.language_model import LanguageModel
from sae.stream.harvest import LOGITS, Harvester

GROUP = 256  # texts whose codes are in memory at a time
At = Literal["any", "last"]


class TextCodes(NamedTuple):
    """What fires in some texts, a row per firing: the text's number, the token's position, latent and activation.

    `n_tokens` [texts] counts the tokens of each text that the dictionary reads, `last` [texts] is the position of the last
    of them (-1: none).
    """

    d_sae: int
    n_tokens: Int[np.ndarray, " texts"]
    last: Int[np.ndarray, " texts"]
    text: Int[np.ndarray, " firings"]
    position: Int[np.ndarray, " firings"]
    latent: Int[np.ndarray, " firings"]
    act: Float[np.ndarray, " firings"]

    def maxima(self, at: At = "any") -> Float[np.ndarray, "texts d_sae"]:
        """The largest activation of every latent in every text, or its activation at the last token."""
        out = np.zeros((len(self.n_tokens), self.d_sae), np.float32)
        rows = slice(None) if at == "any" else self.position == self.last[self.text]
        np.maximum.at(out, (self.text[rows], self.latent[rows]), self.act[rows])
        return out

    def means(self) -> csr_array:
        """The mean activation of every latent over the tokens of every text, [texts, d_sae] without zeros."""
        weights = self.act / np.maximum(self.n_tokens, 1)[self.text]
        return csr_array((weights, (self.text, self.latent)), shape=(len(self.n_tokens), self.d_sae))

    def active_per_token(self) -> Float[np.ndarray, " texts"]:
        """Mean number of latents that fire at a token of each text."""
        return np.bincount(self.text, minlength=len(self.n_tokens)) / np.maximum(self.n_tokens, 1)


class _Context(NamedTuple):
    text: int
    start: int  # place of the first token in the text
    ids: list[int]


class _Rows(NamedTuple):
    """Padded contexts: ids [contexts, length], and which of them are tokens of a text."""

    ids: Int[np.ndarray, "contexts length"]
    inside: Bool[np.ndarray, "contexts length"]


class _Pass(NamedTuple):
    """Rows of one forward pass that the dictionary reads, with text and position of each."""

    batch: Batch
    text: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class TextReader:
    """A dictionary and the model it was trained on, ready to read texts of up to `n_contexts` contexts each."""

    sae: SparseAutoencoder
    harvester: Harvester
    ctx_len: int
    n_contexts: int = 1

    @property
    def lm(self) -> LanguageModel:
        return self.harvester.lm

    def read(self, texts: Iterable[str]) -> TextCodes:
        """The codes of all texts at once."""
        parts = list(self.stream(texts))
        if not parts:
            raise DataError("no text was given; give at least one.")

        firsts = np.cumsum([0, *(len(part.n_tokens) for part in parts)])[:-1]
        numbers = np.concatenate([part.text + first for part, first in zip(parts, firsts, strict=True)])
        n_tokens, last, position, latent, act = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("n_tokens", "last", "position", "latent", "act")
        )
        return TextCodes(self.sae.d_sae, n_tokens, last, numbers, position=position, latent=latent, act=act)

    def read_every(self, texts: list[str]) -> TextCodes:
        """The codes of all texts; raises `DataError` for the first text of which nothing can be read."""
        codes = self.read(texts)
        self.check_read(texts, codes.n_tokens)
        return codes

    def stream(self, texts: Iterable[str]) -> Iterator[TextCodes]:
        """The codes of some hundred texts after the other, in the order of the texts."""
        texts = iter(texts)
        while group := list(itertools.islice(texts, GROUP)):
            yield self._codes(group)

    @torch.no_grad()
    def _codes(self, texts: list[str]) -> TextCodes:
        n_tokens, last = np.zeros(len(texts), np.int64), np.full(len(texts), -1)
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for part in self._passes(texts, self.harvester.channels):
            code = self.sae.encode(part.batch.x)
            n_tokens += np.bincount(part.text, minlength=len(texts))
            np.maximum.at(last, part.text, part.position)
            acts = code.top_acts.float().cpu().numpy()
            row, place = (acts > 0).nonzero()
            latents = code.top_indices.cpu().numpy()
            values = (part.text[row], part.position[row], latents[row, place], acts[row, place])
            for column, value in zip(columns, values, strict=True):
                column.append(value)

        text, position, latent, act = (np.concatenate([*column, np.zeros(0, np.int64)]) for column in columns)
        order = np.lexsort((latent, position, text))
        text, position, latent, act = (column[order] for column in (text, position, latent, act.astype(np.float32)))
        return TextCodes(self.sae.d_sae, n_tokens, last, text, position=position, latent=latent, act=act)

    @torch.no_grad()
    def activations(self, texts: list[str], at: Literal["mean", "last"] = "mean") -> Float[np.ndarray, "texts d_out"]:
        """What the dictionary reconstructs, in the model's own units: the mean over each text's tokens, or its last one.

        Raises `DataError` for a text of which it reads no token.
        """
        sums, counts = np.zeros((len(texts), self.sae.d_out)), np.zeros(len(texts))
        last = np.full(len(texts), -1)
        for part in self._passes(texts, self.harvester.channels):
            y = part.batch.y.double().cpu().numpy()
            if at == "mean":
                np.add.at(sums, part.text, y)
                counts += np.bincount(part.text, minlength=len(texts))
                continue
            for row in np.flatnonzero(part.position > last[part.text]):  # contexts of one text may come in any order
                text, position = int(part.text[row]), int(part.position[row])
                if position > last[text]:
                    last[text], counts[text], sums[text] = position, 1, y[row]
        self.check_read(texts, counts)
        return (sums / counts[:, None]).astype(np.float32)

    @torch.no_grad()
    def largest_cosines(
        self, texts: list[str], directions: Float[torch.Tensor, "n d_out"]
    ) -> Float[np.ndarray, "texts n"]:
        """The largest cosine over a text's tokens of each direction with what the dictionary reconstructs."""
        out = np.full((len(texts), len(directions)), -1.0)
        unit = F.normalize(directions.float(), dim=1).to(self.lm.device)
        for part in self._passes(texts, self.harvester.channels):
            cosines = (F.normalize(part.batch.y.float(), dim=1) @ unit.T).double().cpu().numpy()
            np.maximum.at(out, part.text, cosines)
        return out

    @torch.no_grad()
    def losses(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Mean next-token cross-entropy of every text, in nats; edits of the model that are active count."""
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
        vocabulary = len(self.lm.model.get_output_embeddings().weight)
        contexts = self._contexts(texts)
        most = max(1, LOGITS // (vocabulary * max(len(context.ids) for context in contexts)))
        for start in range(0, len(contexts), most):
            part = contexts[start : start + most]
            rows = _padded(part)
            ids = torch.from_numpy(rows.ids).to(self.lm.device)
            logits = self.lm.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double().cpu().numpy()
            for context, row, inside in zip(part, loss, rows.inside[:, 1:], strict=True):
                sums[context.text] += row[inside].sum()
                counts[context.text] += inside.sum()
        self.check_read(texts, counts)
        return sums / counts

    def check_read(self, texts: list[str], n_tokens: Real[np.ndarray, " texts"]) -> None:
        """Raises `DataError` for the first text of which nothing can be read."""
        empty = np.flatnonzero(n_tokens == 0)
        if len(empty):
            raise DataError(
                f"text {empty[0] + 1} ({texts[empty[0]][:80]!r}) has fewer than two tokens; give longer texts."
            )

    def _contexts(self, texts: list[str]) -> list[_Context]:
        """The contexts of all texts, from short to long, so that little is padded."""
        beginning = [self.lm.tokenizer.bos_token_id] if self.lm.prepend_bos else []
        step = self.ctx_len - len(beginning)
        contexts = []
        for number, text in enumerate(texts):
            ids = self.lm.tokenizer(text, add_special_tokens=False).input_ids[: step * self.n_contexts]
            self.lm.check_embedded(np.array(ids, np.int64))
            starts = range(0, max(len(ids), 1), step)
            contexts += [_Context(number, start, beginning + ids[start : start + step]) for start in starts]
        return sorted(contexts, key=lambda context: len(context.ids))

    def _passes(self, texts: list[str], channels: tuple[Channel, ...]) -> Iterator[_Pass]:
        contexts = [context for context in self._contexts(texts) if context.ids]
        step = self.harvester.config.contexts_per_pass(self.ctx_len, self.lm.device)
        for start in range(0, len(contexts), step):
            part = contexts[start : start + step]
            rows = _padded(part)
            harvested = self.harvester.harvest(rows.ids, np.zeros_like(rows.ids))
            is_read = harvested.keep & torch.from_numpy(rows.inside).to(harvested.keep.device)
            batch = batch_of(self.sae.config, {channel: harvested.x[channel][is_read] for channel in channels})
            row, place = (index.cpu().numpy() for index in is_read.nonzero().T)
            text, first = (np.array(column)[row] for column in ([c.text for c in part], [c.start for c in part]))
            yield _Pass(batch, text, first + place)


def _padded(contexts: list[_Context]) -> _Rows:
    longest = max(len(context.ids) for context in contexts)
    ids, inside = np.zeros((len(contexts), longest), np.int64), np.zeros((len(contexts), longest), bool)
    for row, context in enumerate(contexts):
        ids[row, : len(context.ids)], inside[row, : len(context.ids)] = context.ids, True
    return _Rows(ids, inside)
