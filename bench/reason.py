"""Multi-hop reasoning over concepts that a dictionary sees: city, country, continent; beside the model's own answers.

    python -m bench.reason runs/quickstart/dictionaries/resid-4096

Concepts are twelve cities, each learned from texts of some templates and tested on texts of others. Rules say which country a
city lies in and which continent a country. The figure is how many test texts get exactly the right continent: by rules from
concepts learned in three ways, by concepts of the continents learned from the same texts (no rules), and by the model itself,
which is asked and answers with the likeliest of the three names. Intervals are of texts.

With --sentences N the test texts have N sentences about different cities, so that several continents are right, and concepts by
marked tokens (local thresholds) stand beside those by whole texts; the model is asked of every continent, yes or no.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae.apply.concept import learn, scores_of
from sae.apply.reasoning.rules import Rule, rule_of
from sae.apply.reasoning.texts import closures, truth_of
from sae.apply.text_codes import TextReader
from sae.apply.token_concept import learn_at_tokens
from sae.foundation.screen import Screen
from sae.interpret.intervals import Interval, proportion
from sae.pipeline.reading import reader_of
from sae.text.brought import MarkedText

PLACES = {
    "Europe": {"France": ("Paris", "Lyon"), "Germany": ("Berlin", "Munich")},
    "Asia": {"Japan": ("Tokyo", "Osaka"), "China": ("Beijing", "Shanghai")},
    "America": {"Canada": ("Toronto", "Montreal"), "Mexico": ("Tijuana", "Cancun")},
}
TEMPLATES = (
    "On Monday she took the early train to {} to see her aunt.",
    "The museum in {} opened a new wing for modern art last year.",
    "He grew up in {} and still knows every street of the old town.",
    "The company moved its head office to {} after the merger.",
    "Heavy rain stopped the traffic in {} for most of the day.",
    "A small bakery in {} sells the best bread that I have ever eaten.",
    "The university of {} admitted more students than ever before.",
    "They met in {} in the spring and married in the autumn.",
    "The mayor of {} promised more trees and fewer cars.",
    "Our flight to {} was late, so we slept at the airport.",
    "The orchestra of {} played to a full house on Friday.",
    "House prices in {} have doubled within ten years.",
    "I read a novel about a detective who lives in {}.",
    "The river that runs through {} froze for the first time in years.",
    "Doctors in {} tested the new medicine on forty patients.",
    "The football team of {} won the final by two goals.",
    "A strike closed the metro of {} for three days.",
    "The letter came from {} and had been opened twice.",
    "She studied law in {} before she became a judge.",
    "The market square of {} was full of flowers.",
    "The conference will be held in {} next September.",
    "Tourists like {} for its food and its gardens.",
    "The bridge in {} is closed for repairs until winter.",
    "My cousin opened a bookshop in {} two years ago.",
    "The photograph shows a street in {} before the war.",
    "The hospital in {} needs more nurses for the night.",
    "After the concert we walked through {} until morning.",
    "The trade fair in {} drew visitors from many places.",
    "The old theatre of {} burned down and was rebuilt.",
    "Snow is rare in {}, but this year it fell in March.",
)
N_LEARN = 20


def rules() -> list[Rule]:
    """City to country to continent."""
    out = []
    for continent, countries in PLACES.items():
        for country, cities in countries.items():
            out += [rule_of(city, country) for city in cities]
            out.append(rule_of(country, continent))
    return out


def likeliest(reader: TextReader, texts: list[str]) -> list[str]:
    """The continent that the model finds likeliest after a question about each text, by its mean loss on the name."""
    lm = reader.lm
    answers = []
    for text in texts:
        losses = {}
        for name in PLACES:
            prompt = f"{text}\nQuestion: On which continent is this city, Europe, Asia or America?\nAnswer:"
            start = len(lm.token_ids(prompt, 1 << 20))
            ids = torch.tensor([lm.token_ids(f"{prompt} {name}", 1 << 20)], device=lm.device)
            with torch.no_grad():
                scores = lm.model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float().log_softmax(1)
            losses[name] = -float(scores.gather(1, ids[0, start:, None]).mean())
        answers.append(min(losses, key=lambda name: losses[name]))
    return answers


def model_set(reader: TextReader, text: str) -> set[str]:
    """The continents of which the model finds yes likelier than no, after a question about each."""
    lm, said = reader.lm, set()
    yes, no = (lm.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    for name in PLACES:
        prompt = f"{text}\nQuestion: Is one of these cities in {name}? Yes or No?\nAnswer:"
        ids = torch.tensor([lm.token_ids(prompt, 1 << 20)], device=lm.device)
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        if logits[yes] > logits[no]:
            said.add(name)
    return said


class Outcome(NamedTuple):
    """Whether each text got exactly the right continents, by method, and the balanced accuracy of every city's concept."""

    hits: dict[str, list[int]]
    accuracy: dict[str, list[float]]


def several(reader: TextReader, seeds: int, n_sentences: int, n_texts: int = 120) -> Outcome:
    """Texts that speak of several cities, by concepts of whole texts and of marked tokens."""
    of = {city: continent for continent, cs in PLACES.items() for cities in cs.values() for city in cities}
    out = Outcome({}, {})
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(TEMPLATES))
        learned = [(TEMPLATES[t].format(c), TEMPLATES[t].index("{}"), c) for t in order[:N_LEARN] for c in of]
        tested = []
        for _ in range(n_texts):
            cities = rng.choice(list(of), n_sentences, replace=False).tolist()
            templates = rng.choice(order[N_LEARN:], n_sentences, replace=False)
            tested.append(
                (" ".join(TEMPLATES[t].format(c) for t, c in zip(templates, cities, strict=True)), set(cities))
            )
        texts = [text for text, _ in tested]
        right = [{of[city] for city in cities} for _, cities in tested]
        codes = reader.read(text for text, _, _ in learned).maxima()
        city = np.array([c for *_, c in learned])
        for method in ("difference", "top"):
            whole = {c: learn(c, codes[city == c], codes[city != c], method, seed=seed).as_json() for c in of}
            local = {}
            for c in of:
                marked = [
                    MarkedText(text, [(first, first + len(c))] if own == c else []) for text, first, own in learned
                ]
                local[c] = learn_at_tokens(c, reader, marked, method, seed=seed).as_json()
            for scope, concepts in (("texts", whole), ("tokens", local)):
                truth = truth_of(reader, rules(), concepts, texts)
                said = [{name for name in PLACES if name in result.facts} for result in closures(rules(), truth)]
                name = f"rules, {method} of {scope}"
                out.hits.setdefault(name, []).extend(a == b for a, b in zip(said, right, strict=True))
                for column, c in enumerate(truth.names):
                    is_own, holds = np.array([c in cities for _, cities in tested]), truth.holds[:, column]
                    both = float(holds[is_own].mean() + 1 - holds[~is_own].mean()) / 2
                    out.accuracy.setdefault(f"{method} of {scope}", []).append(both)
        out.hits.setdefault("the model's answer", []).extend(
            model_set(reader, text) == known for text, known in zip(texts, right, strict=True)
        )
        out.hits.setdefault("all three, always", []).extend(known == set(PLACES) for known in right)
    return out


def single(reader: TextReader, seeds: int) -> Outcome:
    """Texts of one sentence about one city."""
    of = {city: continent for continent, cs in PLACES.items() for cities in cs.values() for city in cities}
    hits: dict[str, list[int]] = {}
    accuracy: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(TEMPLATES))
        learned, tested = (
            [(TEMPLATES[t].format(c), c) for t in part for c in of] for part in (order[:N_LEARN], order[N_LEARN:])
        )
        codes = reader.read(text for text, _ in learned).maxima()
        test_codes = reader.read(text for text, _ in tested).maxima()
        city = np.array([c for _, c in learned])
        continent = np.array([of[c] for c in city])
        for method in ("top", "difference", "tree"):
            concepts = {c: learn(c, codes[city == c], codes[city != c], method, seed=seed).as_json() for c in of}
            truth = truth_of(reader, rules(), concepts, [text for text, _ in tested])
            results = closures(rules(), truth)
            said = [{name for name in PLACES if name in result.facts} for result in results]
            hits.setdefault(f"rules, {method}", []).extend(s == {of[c]} for s, (_, c) in zip(said, tested, strict=True))
            for c in of:
                is_own = np.array([other == c for _, other in tested])
                holds = scores_of(concepts[c], test_codes) > concepts[c]["threshold"]
                accuracy.setdefault(method, []).append(float(holds[is_own].mean() + 1 - holds[~is_own].mean()) / 2)
            direct = {
                n: learn(n, codes[continent == n], codes[continent != n], method, seed=seed).as_json() for n in PLACES
            }
            rows = np.stack([scores_of(direct[n], test_codes) > direct[n]["threshold"] for n in PLACES], axis=1)
            names = [{n for n, yes in zip(PLACES, row, strict=True) if yes} for row in rows]
            hits.setdefault(f"no rules, {method}", []).extend(
                s == {of[c]} for s, (_, c) in zip(names, tested, strict=True)
            )
        answers = likeliest(reader, [text for text, _ in tested])
        hits.setdefault("the model's answer", []).extend(a == of[c] for a, (_, c) in zip(answers, tested, strict=True))

    return Outcome(hits, accuracy)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--sentences", type=int, default=1, help="about different cities, in every test text (default: 1)"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    reader = reader_of(arguments.dictionary, None, Screen())
    hits, accuracy = (
        several(reader, arguments.seeds, arguments.sentences)
        if arguments.sentences > 1
        else single(reader, arguments.seeds)
    )
    out: dict[str, Interval] = {name: proportion(sum(values), len(values)) for name, values in sorted(hits.items())}
    for name, interval in out.items():
        print(f"{name:<24} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})")
    for method, values in accuracy.items():
        print(f"cities, {method:<16} balanced accuracy {np.mean(values):.3f} (lowest {np.min(values):.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: list(i) for name, i in out.items()}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
