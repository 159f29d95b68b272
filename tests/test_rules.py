"""Rules over concepts: closure and proofs beside plain search, what is refused, and the command on a real run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fixtures import WORDS, copy_run, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.results.findings import Finding
from sae.apply.concept import learn, scores_of
from sae.apply.reasoning.rules import check_rules, closure, explained, holds, observed, read_rules, rule_of
from sae.errors import ConfigError

CHAIN = [
    rule_of("bridge and (san_francisco or bay)", "golden_gate"),
    rule_of("golden_gate", "california"),
    rule_of("california and not rain", "sunny"),
]


def test_conclusions_follow_with_their_proofs():
    result = closure(CHAIN, frozenset({"bridge", "bay"}))
    assert result.facts == {"bridge", "bay", "golden_gate", "california", "sunny"}
    assert [step.concept for step in result.proof("sunny")] == ["golden_gate", "california", "sunny"]
    assert result.proof("bay") == [] and [s.rule for s in result.proof("california")] == [1, 2]
    assert "bay, bridge so golden_gate (rule 1" in explained(list(result.steps), CHAIN)
    assert closure(CHAIN, frozenset({"bridge", "bay", "rain"})).facts == {
        "bridge",
        "bay",
        "rain",
        "golden_gate",
        "california",
    }
    assert closure(CHAIN, frozenset({"bridge"})).steps == ()
    assert observed(CHAIN) == ["bay", "bridge", "rain", "san_francisco"]


def test_expressions_are_those_of_python_for_every_assignment():
    text = "a and not (b xor c) or (c and b)"
    rule = rule_of(text, "x")
    for values in itertools.product([False, True], repeat=3):
        names = dict(zip("abc", values, strict=True))
        expected = eval(text.replace("xor", "!="), {}, names)
        assert holds(rule.tree, {name for name, value in names.items() if value}) == expected
    assert rule.denied == {"b", "c"} and rule.names == {"a", "b", "c"}


names = st.sampled_from("abcdef")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), names), max_size=8), st.frozensets(names), st.randoms()
)
def test_the_closure_is_the_least_one_whatever_the_order_of_rules(pairs, facts, random):
    rules = [rule_of(" and ".join(body), then) for body, then in pairs]
    result = closure(rules, facts)
    assert all(rule.then in result.facts for rule in rules if rule.names <= result.facts)
    for step in result.steps:  # every step rests on earlier ones
        before = facts | {s.concept for s in result.steps[: result.steps.index(step)]}
        assert set(step.because) <= before and rules[step.rule - 1].names <= before
    shuffled = rules[:]
    random.shuffle(shuffled)
    assert closure(shuffled, facts).facts == result.facts


@pytest.mark.parametrize(
    "text", ["a b", "a and", "f(a)", "a < b", "a.b", "__import__('os')", "1", "a if b else c", "lambda: a"]
)
def test_other_expressions_are_refused(text):
    with pytest.raises(ConfigError, match="rule"):
        rule_of(text, "x")


def test_denying_a_conclusion_and_wrong_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="denies golden_gate"):
        check_rules([*CHAIN, rule_of("not golden_gate", "other")])
    with pytest.raises(ConfigError, match="denies california"):
        check_rules([*CHAIN, rule_of("california xor bay", "other")])
    with pytest.raises(ConfigError, match="is no name"):
        rule_of("a", "golden gate")
    for text, words in (
        ("rules: 3", "a list"),
        ("rules: [{if: a}]", "rule 1 is not"),
        ("{", "not valid YAML"),
        ("rules: [{if: a, then: 3}]", "rule 1"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_rules(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        read_rules(tmp_path / "none.yaml")


@pytest.mark.parametrize("method", ["difference", "top", "tree"])
def test_a_stored_concept_scores_as_when_it_was_learned(method):
    rng = np.random.default_rng(0)
    positive, negative = rng.random((60, 20)), rng.random((60, 20))
    positive[:, 4] += 1.5
    concept = learn("x", positive, negative, method)
    stored = concept.as_json()
    said = scores_of(stored, np.vstack([positive, negative])) > stored["threshold"]
    assert said[:60].mean() > 0.9 and said[60:].mean() < 0.1


@pytest.fixture(scope="module")
def taught(finished, tmp_path_factory):
    """A run whose dictionary has learned two words."""
    home = tmp_path_factory.mktemp("rules")
    copy_run(finished, home / "tiny")
    folder = home / "tiny/dictionaries/first"
    fillers = WORDS[10:22]
    for name, word in (("first", WORDS[4]), ("second", WORDS[7])):
        other = WORDS[8]
        for kind, w in (("yes", word), ("no", other)):
            texts = [
                f"{a} {b} {w} {a} {c}" for a, b, c in itertools.islice(itertools.permutations(fillers, 3), 0, 400, 7)
            ]
            (home / f"{kind}.txt").write_text("\n".join(texts), encoding="utf-8")
        done = run_here(
            "concept", "add", folder, "--name", name, "--positive", home / "yes.txt", "--negative", home / "no.txt"
        )
        assert done.returncode == 0, done.stderr
    (home / "rules.yaml").write_text("rules:\n- if: first and second\n  then: both\n- if: both\n  then: first_of_all\n")
    return home, folder


def test_the_command_reasons_about_texts(taught):
    home, folder = taught
    f = WORDS[10:22]
    texts = [f"{f[0]} {WORDS[4]} {f[1]} {WORDS[7]} {f[2]}", f"{f[3]} {WORDS[8]} {f[4]} {f[5]} {f[6]}"]
    (home / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    done = run_here("reason", folder, "--rules", home / "rules.yaml", "--texts", home / "texts.txt")
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings/reason")
    both, neither = finding.tables[1].rows
    assert both[2] == "both, first_of_all" and "(rule 1: first and second)" in str(both[3])
    assert neither[2] == "" and finding.settings["rule 2"] == "if both then first_of_all"


def test_a_prompt_is_continued_plainly_and_steered(taught):
    home, folder = taught
    prompt = f"{WORDS[10]} {WORDS[4]} {WORDS[11]} {WORDS[7]}"
    (home / "steer.yaml").write_text("rules:\n- if: second\n  then: first\n")
    done = run_here("reason", folder, "--rules", home / "steer.yaml", "--prompt", prompt, "--tokens", "5")
    assert done.returncode == 0, done.stderr
    assert "holds:   first, second" in done.stdout and "steered:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of them"),
        (("--prompt", "a", "--texts", "b"), "one of them"),
        (("--prompt", "a b", "--rules", "OTHER"), "has no concept of"),
    ],
)
def test_one_line_for_bad_input(taught, arguments, words):
    home, folder = taught
    (home / "other.yaml").write_text("rules: [{if: unheard, then: x}]")
    arguments = [home / "other.yaml" if word == "OTHER" else word for word in arguments]
    done = run_here("reason", folder, "--rules", home / "rules.yaml", *arguments)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
