"""`sae concept add`: learns a concept from your own texts and keeps it in the dictionary folder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final, get_args

from sae.commands.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from sae.apply.concept import ConceptByExample, Method
    from sae.apply.text_codes import TextReader
    from sae.text.brought import MarkedText, Texts

FILE_NAME = "concepts_by_example.json"


@final
class Concept(Command):
    """Finds the features that tell texts apart."""

    name = "concept"
    help = "find the features that tell your own texts apart"
    order = 40

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The verb `add`."""
        add = parser.add_subparsers(required=True, metavar="command").add_parser(
            "add", help="learn a concept from positive and negative texts; half of them are held out to test it"
        )
        add.add_argument("dictionary", type=Path, help="dictionary folder")
        add.add_argument("--name", required=True, help="what to call the concept")
        add.add_argument("--positive", type=Path, metavar="FILE", help="texts that have it, one per line")
        add.add_argument("--negative", type=Path, metavar="FILE", help="texts that do not have it, one per line")
        add.add_argument(
            "--labelled", type=Path, metavar="FILE", help='instead: JSON lines with "text" and "label" (true or false)'
        )
        add.add_argument(
            "--marked", type=Path, metavar="FILE",
            help="instead: texts, one per line, with [[ ]] around what shows the concept; lines without a mark do not have it",
        )  # fmt: skip
        add.add_argument(
            "--method", default="difference", help="difference (of means; default), top (one feature) or tree"
        )
        add.add_argument("--k", type=int, default=16, help="largest number of features (default: 16)")
        add.add_argument("--seed", type=int, default=0, help="seed that halves the texts (default: 0)")
        add.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")
        add.set_defaults(work=_add)


def _add(arguments: Namespace) -> int:
    from sae.text.brought import marked_texts, texts_of

    texts = (
        marked_texts(arguments.marked)
        if arguments.marked
        else texts_of(arguments.positive, arguments.negative, arguments.labelled)
    )
    concept = add_concept(
        arguments.dictionary,
        texts,
        name=arguments.name,
        method=arguments.method,
        k=arguments.k,
        seed=arguments.seed,
        run_folder=arguments.run,
    )
    n_texts = f"{concept.n_positive[1]} + {concept.n_negative[1]} texts"

    for title, interval in (
        ("balanced accuracy", concept.balanced_accuracy),
        ("precision", concept.precision),
        ("recall", concept.recall),
    ):
        print(f"{title:<18} {interval.value:.3f}  ({interval.low:.3f} to {interval.high:.3f}) on {n_texts}")

    if concept.token_balanced_accuracy is not None:
        print(f"{'of single tokens':<18} {concept.token_balanced_accuracy:.3f}  balanced accuracy")

    for feature, weight in zip(concept.features, concept.weights, strict=True):
        print(f"  feature {feature:>6}  weight {weight:+.3f}")

    return 0


def add_concept(
    folder: Path,
    texts: Texts | list[MarkedText],
    *,
    name: str,
    method: str,
    k: int,
    seed: int,
    run_folder: Path | None,
) -> ConceptByExample:
    """Learns a concept from texts, or from marked tokens, and keeps it in concepts_by_example.json under its name."""
    from sae.apply.concept import Method
    from sae.errors import ConfigError
    from sae.foundation.files import owned, read_json, write_json
    from sae.foundation.screen import Screen
    from sae.pipeline.reading import reader_of

    if method not in get_args(Method):
        raise ConfigError(f"--method: {method!r}; allowed are {', '.join(get_args(Method))}")

    folder, screen = folder.resolve(), Screen()

    if not isinstance(texts, list):
        texts = _distinct(texts, name)
    reader = reader_of(folder, run_folder, screen)
    with owned(folder), screen.progress("encode", 2, "files") as progress:
        concept = _learned(reader, texts, name, cast(Method, method), k=k, seed=seed, step=progress.step)
        path = folder / FILE_NAME
        stored: dict[str, Any] = read_json(path) if path.exists() else {}
        write_json(path, stored | {name: concept.as_json()})

    return concept


def _learned(
    reader: TextReader,
    texts: Texts | list[MarkedText],
    name: str,
    method: Method,
    *,
    k: int,
    seed: int,
    step: Callable[[], None],
) -> ConceptByExample:
    from sae.apply.concept import learn
    from sae.apply.token_concept import learn_at_tokens

    if isinstance(texts, list):
        concept = learn_at_tokens(name, reader, texts, method, k=k, seed=seed)
        step()
        return concept

    maxima = []
    for part in texts:
        maxima.append(reader.read_every(part).maxima())
        step()
    return learn(name, maxima[0], maxima[1], method=method, k=k, seed=seed)


def _distinct(texts: Texts, name: str) -> Texts:
    """Each text once; raises `DataError` for one that is in both files."""
    from sae.errors import DataError
    from sae.text.brought import Texts as Pair

    # A text that occurs twice could be chosen on in one half and tested on in the other.
    positive, negative = (list(dict.fromkeys(part)) for part in texts)
    repeated_texts = set(positive) & set(negative)
    if repeated_texts:
        raise DataError(
            f"concept {name}: {len(repeated_texts)} texts are in both files, such as {sorted(repeated_texts)[0]!r}."
        )
    return Pair(positive, negative)
