"""Concepts by marked tokens: marks are read, the planted token is found, and rules say which token showed a concept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures import WORDS, copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.text_codes import TextCodes
from sae.apply.token_concept import learn_at_tokens, strongest_tokens
from sae.errors import ConfigError, DataError
from sae.foundation.screen import Screen
from sae.pipeline.reading import reader_of
from sae.text.brought import MarkedText, marked_texts


def codes(rows, n_tokens):
    text, position, latent, act = (np.array(column) for column in zip(*rows, strict=True))
    return TextCodes(4, np.array(n_tokens), np.array(n_tokens), text, position=position, latent=latent, act=act)


def test_the_strongest_token_is_the_one_whose_latents_add_up():
    seen = codes([(0, 1, 0, 1.0), (0, 2, 0, 0.8), (0, 2, 1, 0.8), (1, 1, 3, 5.0), (2, 1, 2, 2.0)], [3, 1, 1])
    concept = {"features": [0, 1, 2], "weights": [1.0, 0.5, -1.0]}
    strongest = strongest_tokens(concept, seen)
    # Over the text the largest activations would give 1.4; on one token there is 1.2. Text 1 has no such feature, text 2 has one
    # that speaks against the concept on its only token.
    assert strongest.score.tolist() == pytest.approx([1.2, 0.0, -2.0])
    assert strongest.position.tolist() == [2, 1, 1]


def test_marks_are_read_and_taken_out(tmp_path):
    file = tmp_path / "marked.txt"
    file.write_text("She left [[Lyon]] for [[New York]].\nNothing here.\n")
    first, second = marked_texts(file)
    assert first.text == "She left Lyon for New York." and second == MarkedText("Nothing here.", [])
    assert [first.text[a:b] for a, b in first.spans] == ["Lyon", "New York"]
    for wrong in ("a [[b", "a [[]] b", "a ]] b"):
        file.write_text(wrong)
        with pytest.raises(DataError, match="line 1: marks are"):
            marked_texts(file)


def marked(n, word, seed=0):
    """Texts of drawn words, every other one with the marked word somewhere."""
    rng, out = np.random.default_rng(seed), []
    for number in range(n):
        words = [str(w) for w in rng.choice([w for w in WORDS if w != word], 5)]
        if number % 2:
            words[int(rng.integers(1, 5))] = f"[[{word}]]"
        out.append(" ".join(words))
    return out


@pytest.fixture(scope="module")
def reader(finished):
    return reader_of(finished / "dictionaries" / "first", None, Screen(quiet=True))


def test_a_marked_word_is_told_and_so_is_its_token(reader, tmp_path):
    file = tmp_path / "marked.txt"
    file.write_text("\n".join(marked(80, WORDS[0])))
    texts = marked_texts(file)
    concept = learn_at_tokens("word", reader, texts)
    assert concept.scope == "token" and concept.balanced_accuracy.value > 0.85
    assert concept.token_balanced_accuracy > 0.85  # pyright: ignore[reportOptionalOperand]
    assert concept.n_positive == concept.n_negative == (20, 20)
    assert learn_at_tokens("word", reader, texts) == concept
    top = learn_at_tokens("word", reader, texts, "top")
    assert len(top.features) == 1 and top.weights == [1.0]

    strongest = strongest_tokens(concept.as_json(), reader.read_every([text.text for text in texts]))
    hits = 0
    for number, text in enumerate(texts):
        if text.spans:
            ids = reader.lm.token_ids(text.text, 100)
            before = reader.lm.tokenizer.decode(ids[: strongest.position[number] + 1])
            hits += text.spans[0][0] < len(before.strip()) <= text.spans[0][1]
    assert hits >= 34  # of 40


def test_too_few_marks_and_trees_are_refused(reader):
    texts = [MarkedText("the state of the river", [(4, 9)])] * 9 + [MarkedText("a train", [])] * 3
    with pytest.raises(DataError, match="9 texts with a mark and 3 without"):
        learn_at_tokens("x", reader, texts)
    with pytest.raises(ConfigError, match="--method tree"):
        learn_at_tokens("x", reader, texts, "tree")


def test_the_commands_learn_and_name_the_token(finished, tmp_path):
    run = copy_run(finished, tmp_path / "run")
    folder, file = run / "dictionaries" / "first", tmp_path / "marked.txt"
    file.write_text("\n".join(marked(80, WORDS[0])))
    done = run_here("concept", "add", folder, "--name", "word", "--marked", file)
    assert done.returncode == 0 and "of single tokens" in done.stdout, done.stderr
    stored = json.loads((folder / "concepts_by_example.json").read_text())["word"]
    assert stored["scope"] == "token"

    rules, texts = tmp_path / "rules.yaml", tmp_path / "texts.txt"
    rules.write_text("rules:\n  - if: word\n    then: said\n")
    texts.write_text("\n".join(line.replace("[[", "").replace("]]", "") for line in marked(30, WORDS[0], seed=3)))
    done = run_here("reason", folder, "--rules", rules, "--texts", texts)
    assert done.returncode == 0, done.stderr
    rows = Finding.read(folder / "findings" / "reason").tables[1].rows
    right = sum((WORDS[0] in str(row[0]).split()) == str(row[1]).startswith("word") for row in rows)
    assert right >= 26 and any("word (“" in str(row[1]) for row in rows)
