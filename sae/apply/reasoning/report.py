"""What `sae reason` writes: the concepts of every text, what follows from them, and the proofs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from feature_store.results.findings import Finding
from sae.apply.finding import table, write_finding
from sae.apply.reasoning.rules import Rule, explained
from sae.apply.reasoning.texts import StoredConcepts, Truth, closures, truth_of
from sae.apply.text_codes import TextReader
from sae.text.brought import some_texts

LETTERS = 120


def reasoning_finding(
    folder: Path,
    name: str,
    reader: TextReader,
    rules: list[Rule],
    *,
    concepts: StoredConcepts,
    texts: str,
    most: int,
) -> Finding:
    """Reads the texts, applies the rules, and writes the finding `name` of the dictionary in `folder`."""
    bodies = some_texts(texts, most)
    truth = truth_of(reader, rules, concepts, bodies)
    results = closures(rules, truth)
    n_concluding = sum(bool(result.steps) for result in results)
    counts = Counter(fact for result in results for fact in result.facts)
    accuracy = {name: concepts[name]["balanced_accuracy"]["value"] for name in truth.names}

    rows = []
    for number, (body, result) in enumerate(zip(bodies, results, strict=True)):
        seen = ", ".join(sorted(_seen(reader, truth, number, body)))
        concluded = ", ".join(step.concept for step in result.steps)
        rows.append([body[:LETTERS], seen, concluded, explained(list(result.steps), rules)])
    every = [*truth.names, *dict.fromkeys(rule.then for rule in rules)]

    return write_finding(
        folder, name, system="reason", title=f"What follows from {Path(texts).name}",
        summary=f"{len(rules)} rules conclude something of {n_concluding} of {len(bodies)} texts.",
        settings={"texts": Path(texts).name, "n_texts": len(bodies), **{f"rule {n}": f"if {rule.text} then {rule.then}" for n, rule in enumerate(rules, 1)}},
        figures=[],
        tables=[
            table(
                "Concepts",
                {"concept": "text", "texts": "number", "balanced accuracy when learned": "number"},
                [[concept, counts[concept], accuracy.get(concept)] for concept in every],
            ),
            table("Texts", {"text": "text", "has": "text", "concluded": "text", "proof": "text"}, rows),
        ],
    )  # fmt: skip


def _seen(reader: TextReader, truth: Truth, number: int, text: str) -> list[str]:
    """The concepts of a text, those of single tokens with the token."""
    ids = reader.lm.token_ids(text, reader.ctx_len * reader.n_contexts)
    said = []
    for column, name in enumerate(truth.names):
        position = int(truth.position[number, column])
        if truth.holds[number, column]:
            token = reader.lm.tokenizer.decode([ids[position]]).strip() if 0 <= position < len(ids) else ""
            said.append(f"{name} (“{token}”)" if token else name)
    return said
