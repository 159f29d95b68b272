"""Rules over concepts: what follows from the concepts that a text has, by forward chaining, with a proof of every conclusion.

A rule is `if: EXPRESSION` and `then: CONCEPT`; an expression joins names of concepts with and, or, not, xor and brackets.
Concepts that no rule concludes are observed in texts; the others are concluded. Chaining goes on until nothing new follows
(ActivationReasoning, Helff et al. 2025, arXiv 2510.18184; its code completes statements by fuzzy search, ours is exact).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sae.errors import ConfigError

FORMS = (ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.BinOp, ast.BitXor, ast.Name, ast.Load)


@dataclass(frozen=True)
class Rule:
    """If the expression holds, the concept does."""

    text: str
    then: str
    tree: ast.expr

    @property
    def names(self) -> frozenset[str]:
        """The concepts that the expression speaks of."""
        return frozenset(node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name))

    @property
    def denied(self) -> frozenset[str]:
        """Those of which the rule may need the absence."""
        inside: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.UnaryOp) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor)):
                inside |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        return frozenset(inside)


class Step(NamedTuple):
    """One conclusion: the concept, the rule's number, and the concepts of the rule that hold."""

    concept: str
    rule: int
    because: tuple[str, ...]


class Closure(NamedTuple):
    """All concepts that hold, and the steps that led to those that were not observed, in order."""

    facts: frozenset[str]
    steps: tuple[Step, ...]

    def proof(self, concept: str) -> list[Step]:
        """The steps that the conclusion rests on, the last one its own; none for an observed concept."""
        by_concept = {step.concept: step for step in self.steps}
        needed: list[Step] = []

        def add(name: str) -> None:
            step = by_concept.get(name)
            if step is None or step in needed:
                return
            for other in step.because:
                add(other)
            needed.append(step)

        add(concept)
        return needed


def rule_of(condition: str, then: str) -> Rule:
    """A rule of its two texts; raises `ConfigError` for anything but names, and, or, not, xor and brackets."""
    try:
        tree = ast.parse(condition.replace(" xor ", " ^ ").strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        raise ConfigError(f"rule {condition!r}: join names of concepts with and, or, not, xor and brackets.") from None
    wrong = [node for node in ast.walk(tree) if not isinstance(node, FORMS)]
    if wrong:
        raise ConfigError(f"rule {condition!r}: only names of concepts, and, or, not, xor and brackets are allowed.")
    if not then.isidentifier():
        raise ConfigError(f"rule {condition!r}: then: {then!r} is no name; use letters, digits and _.")
    return Rule(condition, then, tree.body)


def read_rules(path: Path) -> list[Rule]:
    """The rules of a YAML file, a list of `if` and `then` under `rules`; raises `ConfigError`."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{path}: no such file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error}).") from None
    rows = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: a list `rules` is wanted, each with `if` and `then`.")
    rules = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or set(row) != {"if", "then"} or not all(isinstance(v, str) for v in row.values()):
            raise ConfigError(f"{path}: rule {number} is not an object with the texts `if` and `then`.")
        rules.append(rule_of(row["if"], row["then"]))
    check_rules(rules)
    return rules


def check_rules(rules: list[Rule]) -> None:
    """Raises `ConfigError` if a rule needs the absence of what a rule concludes: the order of rules would then matter."""
    concluded = {rule.then for rule in rules}
    for rule in rules:
        denied = rule.denied & concluded
        if denied:
            raise ConfigError(
                f"rule {rule.text!r}: denies {sorted(denied)[0]}, which a rule concludes. Deny observed concepts alone."
            )


def observed(rules: list[Rule]) -> list[str]:
    """The concepts that rules speak of and none concludes, sorted: those that must be known of a text."""
    return sorted(frozenset().union(*(rule.names for rule in rules)) - {rule.then for rule in rules})


def holds(tree: ast.expr, facts: frozenset[str] | set[str]) -> bool:
    """Whether an expression holds if these concepts do and no others."""
    if isinstance(tree, ast.Name):
        return tree.id in facts
    if isinstance(tree, ast.UnaryOp):
        return not holds(tree.operand, facts)
    if isinstance(tree, ast.BinOp):
        return holds(tree.left, facts) != holds(tree.right, facts)
    assert isinstance(tree, ast.BoolOp)
    every = all if isinstance(tree.op, ast.And) else any
    return every(holds(value, facts) for value in tree.values)


def closure(rules: list[Rule], facts: frozenset[str]) -> Closure:
    """Everything that follows from observed concepts. Rules are tried in their order until none adds anything."""
    known, steps = set(facts), []
    added = True
    while added:
        added = False
        for number, rule in enumerate(rules, 1):
            if rule.then not in known and holds(rule.tree, known):
                known.add(rule.then)
                steps.append(Step(rule.then, number, tuple(sorted(rule.names & known - {rule.then}))))
                added = True
    return Closure(frozenset(known), tuple(steps))


def explained(steps: list[Step], rules: list[Rule]) -> str:
    """A proof in words."""
    return "; ".join(
        f"{', '.join(s.because) or 'nothing'} so {s.concept} (rule {s.rule}: {rules[s.rule - 1].text})" for s in steps
    )
