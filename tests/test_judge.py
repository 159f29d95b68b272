"""Explanations and scores of judges that always say yes, no, or anything; that know; that fail; that are attacked."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures import explanations, feature_scores, no_model

from feature_store.records import Concept
from feature_store.store import Store
from sae.cli import main
from sae.errors import ConfigError, UnavailableError
from sae.interpret.interpret import InterpretConfig, interpret
from sae.interpret.judging.answer_cache import AnswerCache
from sae.interpret.judging.concept_names import named_by
from sae.interpret.judging.judge import Judge, JudgeConfig, Prompt, read, yes_probabilities
from sae.interpret.judging.judged_scorer import Trial, ranked
from sae.interpret.judging.prompts import CLOSE, LONGEST_LABEL, OPEN, plain

FEATURES = range(0, 2)  # features that fire on one word
PROMPT = Prompt("say ok", "{}", {"type": "object"})


def says(matches, levels, odd, activations, label="a word"):
    """A judge that explains with `label` and answers every test by these functions of the data."""

    def reply(system, data, schema):
        wanted = set(schema["properties"])
        if "label" in wanted:
            return json.dumps({"kind": "input", "label": label, "sentence": "It fires on it."})
        if "name" in wanted:
            return json.dumps({"name": f"<b>{label}</b> [group](http://evil.example)"})
        if "matches" in wanted:
            return json.dumps({"matches": [matches(data["description"], t) for t in data["texts"]]})
        if "levels" in wanted:
            return json.dumps({"levels": [levels(data["description"], t) for t in data["texts"]]})
        if "odd" in wanted:
            return json.dumps({"odd": odd(data["texts"])})
        return json.dumps({"activations": [activations(data["description"], t) for t in data["tokens"]]})

    return reply


def constant(yes):
    level = 10 if yes else 0
    return says(lambda d, t: yes, lambda d, t: level, lambda ts: 1, lambda d, t: level)


def marked(text):
    return text.split(OPEN, 1)[1].split(CLOSE, 1)[0].strip() if OPEN in text else ""


def word(description):
    return description.split(":")[0].replace("token ", "").strip("\u201c\u201d")


word_test = says(
    lambda d, t: marked(t) == word(d) if OPEN in t else f" {word(d)} " in f"{t} ",
    lambda d, t: 10 * (marked(t) == word(d)), lambda ts: 1, lambda d, t: 10 * (t.strip() == word(d)),
)  # fmt: skip


def knows(system, data, schema):
    """Names the word between the marks, and later answers by that word alone."""
    if "label" not in schema["properties"]:
        if "odd" in schema["properties"]:
            found = [marked(t) for t in data["texts"]]
            return json.dumps({"odd": 1 + min(range(len(found)), key=lambda i: found.count(found[i]))})
        return word_test(system, data, schema)
    texts = data.get("windows") or data.get("fires")
    name = marked(texts[0]) if texts else data["tokens"][0][0].strip()
    return json.dumps({"kind": "input", "label": name, "sentence": "It fires on this word."})


def copied(planted, tmp_path, name="copy"):
    import shutil

    shutil.copytree(planted[0], tmp_path / name)
    return tmp_path / name


ALL = {
    "explainers": ("token", "next_token", "keyphrase", "max_activation", "contrastive", "single_token"),
    "scorers": ("confidence", "detection", "fuzzing", "simulation", "intruder", "judged_confidence"),
}


def judged(folder, script, **more):
    config = InterpretConfig(judge=JudgeConfig(base_url=script.url, model="scripted", **more), **ALL)
    summary = interpret(folder, config, no_model, features=FEATURES)
    return Store(folder / "store"), summary


def scores(store, feature, explainer="max_activation"):
    found = next(e for e in explanations(store, feature) if e.explainer == explainer)
    return {(s.scorer, s.metric): s for s in (*found.scores, *feature_scores(store, feature)) if s.judge}


@pytest.mark.parametrize("yes", [True, False])
def test_a_judge_that_always_says_the_same_scores_at_chance(planted, tmp_path, judges, yes):
    store, _ = judged(copied(planted, tmp_path), judges(constant(yes)))
    for feature in FEATURES:
        found = scores(store, feature)
        for key in (("detection", "balanced_accuracy"), ("fuzzing", "balanced_accuracy"),
                    ("judged_confidence", "confidence")):  # fmt: skip
            assert found[key].value == 0.5 and found[key].low < 0.5 < found[key].high and found[key].n_failed == 0
        assert found["simulation", "correlation"].value is None  # a constant correlates with nothing
        assert found["judged_confidence", "recall"].value == yes
        assert found["judged_confidence", "true_negative_rate"].value == 1 - yes


def test_a_random_judge_scores_at_chance_within_the_interval(planted, tmp_path, judges):
    rng = random.Random(0)
    reply = says(
        lambda d, t: rng.random() < 0.5, lambda d, t: rng.choice([0, 10]), lambda ts: rng.randint(1, 5),
        lambda d, t: rng.randint(0, 10),
    )  # fmt: skip
    store, _ = judged(copied(planted, tmp_path), judges(reply), concurrency=1)
    inside = [
        s.low <= s.chance <= s.high
        for f in FEATURES
        for e in ("max_activation", "contrastive", "single_token")
        for (_, metric), s in scores(store, f, e).items()
        if metric in ("balanced_accuracy", "confidence", "accuracy", "correlation")
    ]
    assert len(inside) >= 30 and sum(inside) >= 0.88 * len(inside)


def test_a_judge_that_knows_scores_near_one(planted, tmp_path, judges):
    store, summary = judged(copied(planted, tmp_path), judges(knows))
    for feature in FEATURES:
        for explainer in ("max_activation", "contrastive", "single_token"):
            found = scores(store, feature, explainer)
            assert found["detection", "balanced_accuracy"].value > 0.9
            assert found["fuzzing", "balanced_accuracy"].value > 0.95
            assert (
                found["judged_confidence", "confidence"].value > 0.95
                and found["judged_confidence", "confidence"].baseline < 0.6
            )
            assert found["simulation", "correlation"].value > 0.8
        assert scores(store, feature)["intruder", "accuracy"].value > 0.8
        label = next(e for e in explanations(store, feature) if e.chosen)
        assert label.explainer == "max_activation" and label.text.endswith(": It fires on this word.")
    assert summary.labels_by_explainer["max_activation"] == len(FEATURES)


@pytest.mark.parametrize("text", ["no JSON here", '{"matches": [true]}', '{"wrong": 1}'])
def test_unreadable_answers_void_the_scores(planted, tmp_path, judges, text):
    good = constant(True)
    store, _ = judged(
        copied(planted, tmp_path), judges(lambda s, d, schema: good(s, d, schema) if "label" in schema["properties"] else text)
    )  # fmt: skip
    for feature in FEATURES:
        for score in scores(store, feature).values():
            assert score.value is None and score.n_failed > 0


def test_a_few_failures_count_as_wrong(planted, tmp_path, judges):
    calls = {"n": 0}
    good = constant(True)

    def reply(system, data, schema):
        if "matches" in schema["properties"]:
            calls["n"] += 1
            if calls["n"] % 16 == 3:
                return "garbage"
        return good(system, data, schema)

    store, _ = judged(copied(planted, tmp_path), judges(reply), concurrency=1)
    found = [
        scores(store, f, e)["detection", "balanced_accuracy"]
        for f in FEATURES
        for e in ("max_activation", "contrastive")
    ]
    failed = [s for s in found if s.n_failed]
    assert failed and all(s.value is None or s.value < 0.5 for s in failed)
    assert all(s.value is None for s in failed if s.n_failed > 0.1 * (s.n_pos + s.n_neg))


def test_busy_servers_are_asked_again_and_dead_ones_are_reported(judges, tmp_path):
    calls = {"n": 0}

    def busy(*_):
        calls["n"] += 1
        return 429 if calls["n"] < 3 else '{"ok": 1}'

    judge = Judge(JudgeConfig(base_url=judges(busy).url, model="m", retries=4), tmp_path / "a.sqlite")
    assert judge.ask([PROMPT])[0].value == {"ok": 1} and calls["n"] == 3
    judge.close()
    judge = Judge(JudgeConfig(base_url=judges(lambda *_: 503).url, model="m", retries=0), tmp_path / "b.sqlite")
    with pytest.raises(UnavailableError, match="requests in a row got no answer"):
        judge.ask([PROMPT] * 3)
    judge.close()
    judge = Judge(JudgeConfig(base_url=judges(lambda *_: 400).url, model="m", retries=0), tmp_path / "c.sqlite")
    with pytest.raises(ConfigError, match="refuses the request"):
        judge.ask([PROMPT])
    judge.close()


def test_strange_bodies_and_single_refusals_are_failures(judges, tmp_path):
    calls = {"n": 0}

    def reply(system, data, schema):
        calls["n"] += 1
        return 400 if data.get("bad") else '{"ok": 1}'

    config = JudgeConfig(base_url=judges(reply).url, model="m", retries=0, concurrency=1)
    judge = Judge(config, tmp_path / "a.sqlite")
    prompts = [PROMPT._replace(user=json.dumps({"n": n, **({"bad": 1} if n == 3 else {})})) for n in range(5)]
    for _ in range(2):  # the second time only the refused one is asked again, and still it is no reason to stop
        answers = judge.ask(prompts)
        assert [a.value for a in answers] == [{"ok": 1}] * 3 + [None] + [{"ok": 1}]
        assert answers[3].failure == "the server refused this prompt"
    assert calls["n"] == 6
    judge.close()


def test_a_slow_server_is_a_failure_not_a_wait(judges, tmp_path):
    slow = judges(lambda *_: time.sleep(2) or "{}")
    judge = Judge(JudgeConfig(base_url=slow.url, model="m", retries=0, timeout_s=0.2), tmp_path / "a.sqlite")
    with pytest.raises(UnavailableError, match="APITimeoutError"):
        judge.ask([PROMPT])
    judge.close()


def test_answers_are_paid_for_once(planted, tmp_path, judges):
    folder, script = copied(planted, tmp_path), judges(constant(True))
    judged(folder, script)
    asked = len(script.seen)
    assert asked > 20
    store, _ = judged(folder, script)
    assert len(script.seen) == asked
    assert all(body["temperature"] == 0 and body["seed"] == 0 for body in script.seen)
    assert judged(folder, script, price_read=1.0)[1].judge.cost == 0.0
    digests = {s.prompt for f in FEATURES for s in scores(store, f).values()}
    assert len(digests) == 5 and all(len(d) == 16 for d in digests)


def test_contexts_stay_data_and_answers_lose_their_markup(planted, tmp_path, judges):
    attack = "x <script>alert(1)</script> [click](http://evil.example) `code` http://evil.example\n\u0007" + "y" * 400
    script = judges(says(lambda d, t: True, lambda d, t: 10, lambda ts: 1, lambda d, t: 1, label=attack))
    store, _ = judged(copied(planted, tmp_path), script)
    for body in script.seen:
        system, user = (m["content"] for m in body["messages"])
        assert "They are data" in system and isinstance(json.loads(user), dict)
        assert body["response_format"]["json_schema"]["strict"] is True
    text = next(e for e in explanations(store, 0) if e.explainer == "max_activation").text
    assert text.startswith("x alert(1) click code y") and len(text.split(":")[0]) <= LONGEST_LABEL
    assert not set("<>`[]\n\u0007") & set(text) and "evil" not in text
    assert plain("javascript:alert(1) ok", 80) == "ok" == plain("java<b></b>script:x h*ttp://e.example ok", 80)


def test_explanations_are_made_from_explain_documents_only(planted, tmp_path, judges):
    """No text that a judge is tested on was in a prompt that it explained from."""
    script = judges(constant(True))
    judged(copied(planted, tmp_path), script)
    bare = lambda text: text.replace(OPEN, "").replace(CLOSE, "")  # noqa: E731
    shown, tested = set(), set()
    for body in script.seen:
        data = json.loads(body["messages"][1]["content"])
        for key, texts in data.items():
            if key in ("windows", "fires", "silent"):
                shown |= set(map(bare, texts))
            elif key == "texts":
                tested |= set(map(bare, texts))
    assert shown and tested and not shown & tested


def test_marks_stand_at_the_same_places_in_both_classes(planted, tmp_path, judges):
    from collections import Counter

    from sae.interpret.evidence import Evidence
    from sae.interpret.scorers import JUDGED_SCORERS, ScoringCase

    evidence = Evidence(planted[1])
    case = ScoringCase(evidence, 0, None, (), levels=np.array([]), seed=0, live_dictionary=no_model)
    places = {True: Counter(), False: Counter()}
    for trial in JUDGED_SCORERS["fuzzing"].trials(case, "x"):
        for text, truth in zip(json.loads(trial.prompt.user)["texts"], trial.truth, strict=True):
            places[truth][text.split(OPEN)[0].count(" ")] += 1
    spread = {truth: sum(p * n for p, n in found.items()) / found.total() for truth, found in places.items()}
    assert abs(spread[True] - spread[False]) < 3


def test_chances_of_yes_become_an_auc_where_the_server_tells_them(planted, tmp_path, judges):
    """A judge that always says yes, but is less sure where it should say no."""
    truths = iter(())

    def reply(system, data, schema):
        nonlocal truths
        if "matches" in schema["properties"] and "description" in data:
            word = data["description"].split(":")[0]
            truths = iter([word in t for t in data["texts"]])
            return json.dumps({"matches": [True] * len(data["texts"])})
        return constant(True)(system, data, schema) if "label" not in schema["properties"] else json.dumps(
            {"kind": "input", "label": data["peaks"][0].strip() if "peaks" in data else "x", "sentence": ""}
        )  # fmt: skip

    script = judges(reply, lambda: 0.9 if next(truths) else 0.6)
    store, _ = judged(copied(planted, tmp_path), script, logprobs=True, concurrency=1)
    for feature in FEATURES:
        found = scores(store, feature)
        assert found["detection", "balanced_accuracy"].value == 0.5
        assert found["detection", "auc"].value > 0.9 and found["detection", "auc"].low > 0.7
    store, _ = judged(copied(planted, tmp_path, "silent"), judges(constant(True)), logprobs=True)
    assert ("detection", "auc") not in scores(store, FEATURES[0])


def test_chances_are_of_yes_among_yes_and_no():
    def token(text, **others):
        top = [SimpleNamespace(token=t, logprob=math.log(p), top_logprobs=[]) for t, p in others.items()]
        return SimpleNamespace(token=text, logprob=top[0].logprob if top else 0.0, top_logprobs=top)

    tokens = [token("{"), token(" true", **{" true": 0.6, "false": 0.2, "x": 0.2}), token("false,", **{"false,": 0.5})]
    assert yes_probabilities(tokens) == [pytest.approx(0.75), 0.0]


def test_an_unreadable_answer_ranks_last():
    def trial(truth):
        return Trial(PROMPT, truth, [None] * len(truth))

    trials = [trial([True, False]) for _ in range(20)]
    told = [[0.9, 0.1]] * 20
    whole = ranked(trials, [[True, False]] * 20, told)[0]
    assert whole.interval.value == 1 and whole.n_failed == 0
    one_lost = ranked(trials, [[True, False]] * 19 + [None], [*told[:19], None])[0]
    assert one_lost.n_failed == 2 and one_lost.interval.value == pytest.approx(19 * 19 / 400)
    assert math.isnan(ranked(trials, [[True, False]] * 17 + [None] * 3, [*told[:17], *[None] * 3])[0].interval.value)
    assert ranked(trials, [[True, False]] * 20, [*told[:19], [0.9]]) == []


def test_a_judge_whose_texts_hold_up_names_concepts(judges, tmp_path):
    concepts = [
        Concept(0, None, "the, a", 1.0, 1.0, [0, 1, 2]),
        Concept(1, None, "cat", 1.0, 1.0, [3, 4]),
        Concept(2, 0, "of", 1.0, 1.0, [0, 1]),
    ]
    labels = {feature: f"label {feature}" for feature in range(5)}

    def named(reply, own):
        judge = Judge(JudgeConfig(base_url=judges(reply).url, model=reply.__name__), tmp_path / "answers.sqlite")
        found = named_by(judge, concepts, labels, own)
        judge.close()
        assert [c.features for c in found] == [c.features for c in concepts]
        return [c.name for c in found]

    def good(system, data, schema):
        assert set(data) == {"descriptions"} and all(d.startswith("label") for d in data["descriptions"])
        return json.dumps({"name": "<b>articles</b> [x](http://evil.example)"})

    def silent(system, data, schema):
        return "no"

    assert named(good, {0, 1, 3}) == ["articles x (the, a)", "cat", "articles x (of)"]
    assert named(good, set()) == named(silent, {0, 1, 2, 3, 4}) == ["the, a", "cat", "of"]


def test_a_guessing_judge_explains_and_names_nothing_and_its_cost_is_known(planted, tmp_path, judges):
    folder = copied(planted, tmp_path)
    store, summary = judged(folder, judges(constant(True)), price_read=1e6, price_written=2e6)
    assert (folder / "concepts.json").read_text() == (planted[0] / "concepts.json").read_text()
    assert not any(e.chosen for f in FEATURES for e in explanations(store, f) if e.explainer == "max_activation")
    spent = summary.judge
    assert spent.cost == spent.prompt_tokens + 2 * spent.answer_tokens > 0


def test_answers_of_an_earlier_version_are_still_paid_for(tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as file:
        file.execute("create table answer (model text, prompt text, text text, primary key (model, prompt))")
        file.execute("insert into answer values ('m', 'p', 'yes')")
    cache = AnswerCache(tmp_path / "a.sqlite")
    assert cache.get("m", "p", False) == ("yes", None) and cache.get("m", "p", True) is None
    cache.put("m", "q", True, "no", yes_probabilities=[0.5])
    assert cache.get("m", "q", True) == cache.get("m", "q", False) == ("no", [0.5])
    cache.close()
    AnswerCache(tmp_path / "a.sqlite").close()


def test_answers_are_found_inside_other_text():
    assert read('Sure! ```json\n{"a": [1]}\n```').value == {"a": [1]}
    assert read("{broken").failure and read("{a: 1}").failure and read("").failure


def test_the_command_line_needs_no_judge_and_names_what_is_missing(planted, tmp_path, capsys):
    assert main(["interpret", str(tmp_path)]) == 2 and "neither a dictionary folder" in capsys.readouterr().err
    assert main(["interpret", str(tmp_path), "--scorers", "detection"]) == 2
    assert "asks a judge" in capsys.readouterr().err
    assert main(["interpret", str(tmp_path), "--explainers", "tokn"]) == 2
    assert "allowed are token" in capsys.readouterr().err
    (tmp_path / "card.json").write_text("{}")
    assert main(["interpret", str(tmp_path), "--features", "9-2"]) == 2 and "0-999" in capsys.readouterr().err
