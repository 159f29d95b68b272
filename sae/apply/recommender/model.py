"""A sequential recommender as a causal language model over items, so that everything else reads it like any other model.

SASRec (Kang and McAuley 2018, arXiv 1808.09781): self-attention over the items of a user's history, learned positions, the
score of an item is the product of the last representation with its embedding. It is GPT-2 of transformers with one or two
small layers, tied embeddings and one token per item, trained by cross-entropy over all items at every position (where the
paper samples one negative item).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.apply.recommender.interactions import SEPARATOR, Item, Sequences
from sae.errors import ConfigError

PAD, UNKNOWN = 0, 1
FIRST = 2  # token id of item 0
IGNORED = -100
TOP = 10
ITEMS_FILE, TEXT_FILE, CONFIG_FILE = "items.json", "sequences.jsonl", "config.yaml"


@dataclass(frozen=True)
class RecommenderSettings:
    """Width, depth and training of the recommender; training ends when NDCG@10 on tuning items no longer rises."""

    width: int = 64
    layers: int = 1
    heads: int = 1
    history: int = 50
    lr: float = 2e-3
    batch: int = 64
    epochs: int = 100
    patience: int = 10
    dropout: float = 0.2
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        if min(self.width, self.layers, self.heads, self.history, self.batch, self.epochs, self.patience) < 1:
            raise ConfigError("width, layers, heads, history, batch, epochs and patience are 1 or more.")
        if self.width % self.heads:
            raise ConfigError(f"--width {self.width}: not a multiple of {self.heads} heads.")


class Ranking(NamedTuple):
    """HR@10 and NDCG@10 of the held-out item among all items that the user has not had, a number per user."""

    hit: Float[np.ndarray, " users"]
    gain: Float[np.ndarray, " users"]


def model_of(n_items: int, settings: RecommenderSettings) -> Any:
    """A new model for that many items."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=n_items + FIRST, n_positions=settings.history, n_embd=settings.width, n_layer=settings.layers,
        n_head=settings.heads, resid_pdrop=settings.dropout, embd_pdrop=settings.dropout, attn_pdrop=settings.dropout,
        bos_token_id=None, eos_token_id=None, pad_token_id=PAD, tie_word_embeddings=True,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def windows(sequences: list[list[int]], history: int) -> Int[Tensor, "windows history"]:
    """Sequences as token ids, cut from their end into windows of `history` items, padded on the right."""
    rows = []
    for sequence in sequences:
        for end in range(len(sequence), 0, -history):
            part = sequence[max(0, end - history) : end]
            rows.append([item + FIRST for item in part] + [PAD] * (history - len(part)))
    return torch.tensor(rows)


def scores_of(model: Any, rows: Int[Tensor, "windows history"]) -> Float[Tensor, "windows history vocabulary"]:
    """The score of every token after every position of padded windows."""
    rows = rows.to(model.device)
    return model(input_ids=rows, attention_mask=(rows != PAD).long()).logits


@torch.no_grad()
def last_logits(model: Any, histories: list[list[int]], length: int, batch: int = 256) -> Float[Tensor, "users items"]:
    """Scores of all items after every history (its last `length` items); items of the history get -inf."""
    out = []
    for start in range(0, len(histories), batch):
        part = histories[start : start + batch]
        rows = windows([history[-length:] for history in part], length)
        ends = torch.tensor([min(len(history), length) - 1 for history in part])
        logits = scores_of(model, rows)
        scores = logits[torch.arange(len(part)), ends.to(logits.device), FIRST:].float().cpu()
        for row, history in zip(scores, part, strict=True):
            row[history] = -torch.inf
        out.append(scores)
    return torch.cat(out)


def ranking(scores: Float[Tensor, "users items"], targets: list[int]) -> Ranking:
    """How the target item of every user ranks; equal scores rank before it."""
    reached = scores.gather(1, torch.tensor(targets)[:, None])
    rank = (scores >= reached).sum(1).clamp_min(1).numpy()
    hit = (rank <= TOP).astype(np.float64)
    return Ranking(hit, hit / np.log2(rank + 1))


def train(
    sequences: Sequences, settings: RecommenderSettings, tell: Callable[[int, float], None] = lambda _e, _n: None
) -> Any:
    """A recommender trained on all but the last two items of every user; the best epoch by NDCG@10 of the last but one.

    `tell` hears of every epoch and its NDCG. The same settings give the same weights on one kind of machine.
    """
    model = model_of(len(sequences.items), settings)
    users = [user for user in sequences.users if len(user) > 2]
    rows = windows([user[:-2] for user in users], settings.history)
    histories, targets = [user[:-2] for user in users], [user[-2] for user in users]
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=1e-6)
    generator = torch.Generator().manual_seed(settings.seed)
    best, state, waited = -1.0, model.state_dict(), 0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for epoch in range(settings.epochs):
            model.train()
            for part in torch.randperm(len(rows), generator=generator).split(settings.batch):
                ids = rows[part]
                logits = scores_of(model, ids)[:, :-1]
                labels = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, IGNORED)
                optimiser.zero_grad()
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED).backward()
                optimiser.step()
            model.eval()
            ndcg = float(ranking(last_logits(model, histories, settings.history), targets).gain.mean())
            tell(epoch + 1, ndcg)
            waited = 0 if ndcg > best else waited + 1
            if ndcg > best:
                best, state = ndcg, {name: weight.clone() for name, weight in model.state_dict().items()}
            if waited >= settings.patience:
                break

    model.load_state_dict(state)
    return model.eval()


def tokenizer_of(items: list[Item]) -> Any:
    """A tokenizer with one token per item, its title; equal titles get the item's id as well."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": PAD, "<unknown>": UNKNOWN}
    for number, item in enumerate(items):
        name = f"{item.title}{SEPARATOR}"
        vocabulary[name if name not in vocabulary else f"{item.title} #{item.id}{SEPARATOR}"] = number + FIRST
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SEPARATOR, "merged_with_previous")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unknown>")  # noqa: S106


def save(folder: Path, model: Any, sequences: Sequences, settings: RecommenderSettings, *, home: Path) -> None:
    """Writes the model with its tokenizer, the items, the users' sequences as text, and a config to train a dictionary.

    `home` is where the folder will stand when it is whole.

    The text leaves out each user's last two items, on which recommendations are tested.
    """
    tokenizer = tokenizer_of(sequences.items)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    items = [{"id": item.id, "title": item.title, "categories": item.categories} for item in sequences.items]
    (folder / ITEMS_FILE).write_text(json.dumps(items), encoding="utf-8")

    names = tokenizer.convert_ids_to_tokens(list(range(FIRST, FIRST + len(items))))
    with (folder / TEXT_FILE).open("w", encoding="utf-8") as file:
        for number, user in enumerate(sequences.users):
            line = {"text": "".join(names[item] for item in user[:-2]), "user": number, "items": user}
            file.write(json.dumps(line) + "\n")
    (folder / CONFIG_FILE).write_text(_config(home, sequences, settings), encoding="utf-8")


def _config(folder: Path, sequences: Sequences, settings: RecommenderSettings) -> str:
    """The config of a dictionary of what the recommender holds right before its scores."""
    n = sum(max(0, len(user) - 2) for user in sequences.users)
    return f"""\
# A dictionary of a recommender: train it with `sae-train {folder.name}/config.yaml`, then `sae recommend audit`.
name: {folder.name}
model:
  source: folder
  path: {folder}
text:
  sources:
    - source: datasets
      path: json
      data_files: [{folder / TEXT_FILE}]
  ctx_len: {settings.history}
  packing: separate # one user's items do not see another's
  held_out_fraction: 0.1
  held_out_tokens: {max(1000, n // 10)}
  on_end: stop
train:
  tokens: {n}
  batch_tokens: 512
  lr: 1.0e-3
shuffle:
  reuse: 8 # every activation is used eight times
harvest:
  drop_positions: 0 # the first item is a history too
sae:
  - name: taste
    architecture: topk
    hook: resid_post.{settings.layers - 1}
    d_sae: {16 * settings.width}
    k: 8
    token_norm: true # the model normalises it before the scores
    dead_after_tokens: {n}
"""
