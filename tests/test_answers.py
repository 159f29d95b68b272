"""The model's own answers: margins are logits, pushing along an answer's direction makes it more likely, command and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures import WORDS, copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.edit import DirectionEdit, EditPlan
from sae.apply.probes.answers import FORMS, Question, Quiz, city_questions, read_questions
from sae.apply.probes.intervention import TRIALS, intervention_table
from sae.apply.probes.statements import CITIES
from sae.apply.steering.directions import evidence_of
from sae.errors import DataError
from sae.foundation.screen import Screen
from sae.pipeline.reading import further_reader, reader_of


@pytest.fixture(scope="module")
def reader(finished):
    return reader_of(finished / "dictionaries" / "second", None, Screen(quiet=True))


def asked(n, seed=0):
    """Questions about words whose answers are drawn words, so that some are right."""
    rng = np.random.default_rng(seed)
    prompts = [" ".join(rng.choice(WORDS, 4)) for _ in range(n)]
    return [Question(prompt, str(rng.choice(WORDS)), str(number)) for number, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def quiz(reader):
    return Quiz(reader, asked(60))


def test_margins_are_differences_of_logits(reader, quiz):
    answers = quiz.answers(EditPlan(()))
    lm, question = reader.lm, quiz.questions[7]
    ids = torch.tensor([lm.token_ids(question.prompt, reader.ctx_len)], device=lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, -1].double()
    first = {a: lm.tokenizer(f" {a}", add_special_tokens=False).input_ids[0] for a in quiz.choices}
    others = max(float(logits[token]) for answer, token in first.items() if answer != question.right)
    assert answers.margin[7] == pytest.approx(float(logits[first[question.right]]) - others, abs=0.05)
    assert answers.is_right[7] == (quiz.choices[answers.said[7]] == question.right)
    part = quiz.answers(EditPlan(()), np.array([7, 3]))
    assert part.margin == pytest.approx(answers.margin[[7, 3]], abs=0.05)


def test_claims_are_the_models_own_words(quiz):
    answers = quiz.answers(EditPlan(()))
    claims = quiz.claims(answers)
    for text, label, question in zip(claims.texts, claims.labels, quiz.questions, strict=True):
        assert text.startswith(question.prompt + " ")
        assert (label == "right") == (text == f"{question.prompt} {question.right}.")


def test_an_answers_own_direction_makes_it_the_answer(reader, quiz):
    right = np.flatnonzero([question.right == quiz.choices[0] for question in quiz.questions])
    assert len(right)
    unembedding = reader.lm.model.get_output_embeddings().weight.detach().float()
    others = unembedding[quiz.tokens[1:]].mean(0)
    plan = EditPlan((DirectionEdit(unembedding[quiz.tokens[0]] - others, "add", 1000.0),))
    assert (quiz.answers(plan, right).margin > quiz.answers(EditPlan(()), right).margin).all()


def test_answers_that_begin_alike_are_left_out(reader):
    alike = [Question("the state of", answer, answer) for answer in ("music", "music of the state", "river", "train")]
    quiz = Quiz(reader, alike)
    assert "river" in quiz.choices and "music" not in quiz.choices
    assert {question.right for question in quiz.questions} == set(quiz.choices)
    with pytest.raises(DataError, match="can be told by their first token"):
        Quiz(reader, alike[:2])


def test_every_direction_is_added_and_taken_away(reader, quiz):
    claims = quiz.claims(quiz.answers(EditPlan(())))
    evidence = evidence_of(reader, claims.texts)
    half = np.arange(len(claims.texts))
    steps = []
    table = intervention_table(quiz, evidence, half[::2], half[1::2], seed=0, step=lambda: steps.append(1))
    assert len(table.rows) == 1 + TRIALS == 1 + len(steps)
    assert table.rows[0][0] == "none" and all(0 <= row[3] <= 1 for row in table.rows)  # pyright: ignore


def test_questions_are_made_or_read(tmp_path):
    questions = city_questions()
    assert len(questions) == len(CITIES) * len(FORMS) and questions[0].right == CITIES[questions[0].group]
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "Two and two are", "answer": "four"}\n{"prompt": "x", "answer": " "}\n')
    with pytest.raises(DataError, match="line 2"):
        read_questions(file)


def test_the_command_asks_and_reads_two_dictionaries(finished, tmp_path):
    run = copy_run(finished, tmp_path / "run")
    folder, other = run / "dictionaries" / "second", run / "dictionaries" / "first"
    reader = reader_of(folder, None, Screen(quiet=True))
    quiz = Quiz(reader, asked(400, 1))
    is_right = quiz.answers(EditPlan(())).is_right
    # As many right as wrong ones, so that there are enough of each in every part.
    wanted = [*np.flatnonzero(is_right)[:40], *np.flatnonzero(~is_right)[:40]]
    chosen = [quiz.questions[number] for number in wanted]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": q.prompt, "answer": q.right}) for q in chosen))
    done = run_here("probe", folder, "--questions", file, "--also", other, "--name", "q", "--positions", "0")
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings" / "q")
    tables = {table.title: table for table in finding.tables}
    read_by = [row[0] for row in tables["Probes, by what they read"].rows]
    assert {"latents", "latents of first", "latents of all"} <= set(read_by)
    assert len(tables["Answers when what tells right from wrong is added, or taken away"].rows) == 1 + TRIALS
    assert finding.settings["others"] == "first" and "own answers" in finding.title
    refused = run_here("probe", folder, "--questions", file, "--texts", file)
    assert refused.returncode != 0 and "give one of them" in refused.stderr


def test_a_further_dictionary_is_read_like_the_first(reader, finished):
    other = further_reader(reader, finished / "dictionaries" / "first")
    alone = reader_of(finished / "dictionaries" / "first", None, Screen(quiet=True))
    texts = ["the river of the state", "a train"]
    assert (other.read(texts).maxima() == alone.read(texts).maxima()).all()
