"""`sae reason DICTIONARY --rules FILE`: what follows from the concepts that texts have, with proofs, and steering by it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding

CONCEPTS = "concepts_by_example.json"


@final
class Reason(Command):
    """Applies rules to texts, or steers a prompt by what follows from it."""

    name = "reason"
    help = "apply rules to the concepts that texts have; see and steer by what follows"
    order = 45
    epilog = (
        "Rules are YAML: a list `rules`, each with `if` (names of concepts joined by and, or, not, xor and brackets) and `then` (a "
        "name). Concepts that no rule concludes are learned beforehand with `sae concept add`. docs/reason.md has an example."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the rules, and texts or a prompt."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument("--rules", type=Path, required=True, metavar="FILE", help="YAML file of rules")
        parser.add_argument("--texts", metavar="FILES", help="texts to reason about")
        parser.add_argument("--most", type=int, default=200, help="texts to read (default: 200)")
        parser.add_argument(
            "--prompt", help="instead: a prompt, which is continued plainly and steered by what follows"
        )
        parser.add_argument("--tokens", type=int, default=40, help="tokens to write after the prompt (default: 40)")
        parser.add_argument("--name", default="reason", help="name of the finding (default: reason)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Reasons and prints what follows."""
        from sae.errors import ConfigError

        if (arguments.texts is None) == (arguments.prompt is None):
            raise ConfigError("give --texts FILES or --prompt TEXT; one of them.")
        if arguments.prompt is not None:
            return _steer(arguments)

        from sae.apply.finding import as_text

        finding = reason_about(
            arguments.dictionary, arguments.rules, arguments.texts, most=arguments.most, name=arguments.name,
            run_folder=arguments.run,
        )  # fmt: skip
        print(as_text(finding, arguments.dictionary))
        return 0


def _steer(arguments: Namespace) -> int:
    from sae.apply.reasoning.rules import explained, read_rules
    from sae.apply.reasoning.texts import check_known, steered
    from sae.foundation.files import read_json
    from sae.foundation.screen import Screen
    from sae.foundation.visible import visible
    from sae.pipeline.reading import reader_of

    rules = read_rules(arguments.rules)
    path = arguments.dictionary / CONCEPTS
    concepts = read_json(path) if path.exists() else {}
    check_known(rules, concepts)
    reader = reader_of(arguments.dictionary, arguments.run, Screen())
    result, plain, changed = steered(reader, rules, concepts, arguments.prompt, n_tokens=arguments.tokens)
    print(visible(f"holds:   {', '.join(sorted(result.facts)) or 'nothing'}"))
    print(visible(f"because: {explained(list(result.steps), rules) or 'nothing follows'}"))
    print(visible(f"plain:   {plain}"))
    print(visible(f"steered: {changed}"))
    return 0


def reason_about(
    folder: Path, rules_file: Path, texts: str, *, most: int, name: str, run_folder: Path | None
) -> Finding:
    """Applies rules to texts and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.reasoning.report import reasoning_finding
    from sae.apply.reasoning.rules import read_rules
    from sae.apply.reasoning.texts import check_known
    from sae.foundation.files import read_json
    from sae.pipeline.reading import reading_for

    rules = read_rules(rules_file)
    path = folder / CONCEPTS
    concepts = read_json(path) if path.exists() else {}
    check_known(rules, concepts)
    with reading_for(name, folder, run_folder) as reading:
        return reasoning_finding(reading.folder, name, reading.reader, rules, concepts=concepts, texts=texts, most=most)
