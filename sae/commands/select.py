"""`sae select DICTIONARY --like EXAMPLES --from CORPUS`: the documents of a corpus that are like a few examples."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.selection.report import SelectionSettings


@final
class Select(Command):
    """Ranks a corpus by examples, writes the nearest documents, and keeps why for the explorer."""

    name = "select"
    help = "find the documents of a corpus that are like a few examples"
    order = 42
    epilog = (
        "Files are .jsonl, .csv or .parquet with a column text, or plain text with one text per line. A document is a mean of "
        "codes, and documents are ranked by generalised Jaccard similarity. selected.parquet in --out holds those that were "
        "chosen; documents.duckdb keeps the vectors, so that another --like on the same corpus takes seconds, and a corpus that "
        "was interrupted goes on. docs/select.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the examples, the corpus, and how much of it to choose."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument("--like", required=True, metavar="FILES", help="examples of what is wanted")
        parser.add_argument("--from", required=True, dest="corpus", metavar="FILES", help="the corpus to choose from")
        parser.add_argument("--share", type=float, default=0.05, help="share of the corpus to choose (default: 0.05)")
        parser.add_argument("--out", type=Path, default=Path("selection"), help="folder to write (default: selection)")
        parser.add_argument("--name", default="selection", help="name of the finding (default: selection)")
        parser.add_argument(
            "--similarity", default="jaccard", help="jaccard (default), cosine or euclid, to compare with"
        )
        parser.add_argument(
            "--contexts", type=int, default=4, help="contexts read of every document, from its start (default: 4)"
        )
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Selects and prints why."""
        from sae.apply.finding import as_text
        from sae.apply.selection.report import SelectionSettings

        settings = SelectionSettings(
            like=arguments.like, corpus=arguments.corpus, share=arguments.share, similarity=arguments.similarity,
            contexts=arguments.contexts,
        )  # fmt: skip
        finding = select_documents(
            arguments.dictionary, settings, out=arguments.out, name=arguments.name, run_folder=arguments.run
        )
        print(as_text(finding, arguments.dictionary))
        print(f"\n{arguments.out / 'selected.parquet'}")
        return 0


def select_documents(
    folder: Path, settings: SelectionSettings, *, out: Path, name: str, run_folder: Path | None
) -> Finding:
    """Selects documents into the folder `out` and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.finding import finding_folder
    from sae.apply.selection.report import selection_finding
    from sae.foundation.files import owned
    from sae.foundation.screen import Screen
    from sae.pipeline.reading import reader_of

    folder, screen = folder.resolve(), Screen()
    settings.check()
    finding_folder(folder, name)
    reader = reader_of(folder, run_folder, screen, n_contexts=settings.contexts)
    out.mkdir(parents=True, exist_ok=True)
    with owned(out):
        return selection_finding(folder, name, reader, settings, out=out, screen=screen)
