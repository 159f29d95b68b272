"""`sae recommend`: a sequential recommender as a model whose dictionary is trained like any other, and its audit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sae.commands.command import Command
from sae.commands.judge_arguments import add_judge_arguments, judge_config, judge_settings

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.recommender.interactions import Columns
    from sae.apply.recommender.model import RecommenderSettings


@final
class Recommend(Command):
    """Trains a recommender, or audits a dictionary of one."""

    name = "recommend"
    help = "train a recommender to look into, and audit a dictionary of it"
    order = 44

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Two verbs."""
        verbs = parser.add_subparsers(required=True, metavar="command")
        train = verbs.add_parser(
            "train", help="train a recommender (SASRec) on users' histories, and write the config of a dictionary of it"
        )
        train.add_argument("interactions", type=Path, help=".csv or .tsv (perhaps .gz) with a row per user, item, time")
        train.add_argument("--items", type=Path, required=True, help="table with a row per item: title, categories")
        train.add_argument("--out", type=Path, required=True, help="folder to write")
        for option, column, what in (
            ("--user", "userId", "column of the user"),
            ("--item", "movieId", "column of the item, in both tables"),
            ("--time", "timestamp", "column of the time, in seconds"),
            ("--title", "title", "column of the title; without one, titles are made of ids"),
            ("--year", "year", "column of the year, if there is one"),
            ("--categories", "genres", "column of the categories, separated by |"),
        ):
            train.add_argument(option, default=column, metavar="COLUMN", help=f"{what} (default: {column})")
        train.add_argument("--width", type=int, default=64, help="width of the model (default: 64)")
        train.add_argument("--layers", type=int, default=1, help="layers (default: 1)")
        train.add_argument("--history", type=int, default=50, help="items of a history that count (default: 50)")
        train.add_argument("--epochs", type=int, default=100, help="most epochs (default: 100)")
        train.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
        train.set_defaults(work=_train)

        audit = verbs.add_parser(
            "audit",
            help="what the dictionary keeps of the recommendations, what its latents stand for, what removing them does",
        )
        audit.add_argument("dictionary", type=Path, help="dictionary folder")
        audit.add_argument("--data", type=Path, help="the recommender's folder (default: that of the run's model)")
        audit.add_argument("--name", default="recommend", help="name of the finding (default: recommend)")
        audit.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
        audit.add_argument(
            "--judged", type=int, default=64, metavar="N", help="latents that a judge describes (default: 64)"
        )
        add_judge_arguments(audit)
        audit.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")
        audit.set_defaults(work=_audit)


def _train(arguments: Namespace) -> int:
    from sae.apply.recommender.interactions import Columns
    from sae.apply.recommender.model import RecommenderSettings

    columns = Columns(
        arguments.user, arguments.item, arguments.time, title=arguments.title, year=arguments.year,
        categories=arguments.categories,
    )  # fmt: skip
    settings = RecommenderSettings(
        width=arguments.width, layers=arguments.layers, history=arguments.history, epochs=arguments.epochs,
        seed=arguments.seed,
    )  # fmt: skip
    train_recommender(arguments.interactions, arguments.items, arguments.out, columns=columns, settings=settings)
    print(f"Now: sae-train {arguments.out / 'config.yaml'}")
    return 0


def _audit(arguments: Namespace) -> int:
    from sae.apply.finding import as_text

    finding = audit_recommender(
        arguments.dictionary, arguments.data, name=arguments.name, seed=arguments.seed, run_folder=arguments.run,
        judge=judge_settings(arguments), most_judged=arguments.judged,
    )  # fmt: skip
    print(as_text(finding, arguments.dictionary))
    return 0


def train_recommender(
    interactions: Path, items: Path, out: Path, *, columns: Columns, settings: RecommenderSettings
) -> None:
    """Trains a recommender and writes it into the new folder `out`, with texts and a config for a dictionary of it."""
    from sae.apply.recommender.interactions import read_sequences
    from sae.apply.recommender.model import last_logits, ranking, save, train
    from sae.foundation.new_folder import write_new_folder
    from sae.foundation.screen import Screen

    settings.check()
    sequences = read_sequences(interactions, items, columns)
    screen = Screen()

    def fill(folder: Path) -> None:
        with screen.progress("recommender", settings.epochs, "epochs") as progress:
            model = train(sequences, settings, lambda n, ndcg: progress.update(n, ndcg=ndcg))
        users = [user for user in sequences.users if len(user) > 2]
        scores = last_logits(model, [user[:-1] for user in users], settings.history)
        result = ranking(scores, [user[-1] for user in users])
        screen.say(
            f"{len(sequences.items):,} items, {len(sequences.users):,} users; of their last items HR@10 {result.hit.mean():.4f}, "
            f"NDCG@10 {result.gain.mean():.4f}"
        )
        save(folder, model, sequences, settings, home=out.resolve())

    write_new_folder(out, fill)


def audit_recommender(
    folder: Path, data: Path | None, *, name: str, seed: int, run_folder: Path | None, judge: dict[str, Any] | None = None,
    most_judged: int = 64,
) -> Finding:  # fmt: skip
    """Audits a dictionary of a recommender and writes the finding into its folder; returns it.

    `judge` are settings of `JudgeConfig`; its answers are kept in the folder, so that none is paid for twice.
    """
    from contextlib import ExitStack, closing

    from sae.apply.recommender.report import recommender_finding
    from sae.errors import ConfigError
    from sae.interpret.interpret import ANSWERS
    from sae.interpret.judging.judge import Judge
    from sae.pipeline.config import config_of_run
    from sae.pipeline.reading import reading_for

    if most_judged < 1:
        raise ConfigError(f"--judged {most_judged}: wanted is 1 or more.")
    folder = folder.resolve()
    if data is None:
        config = config_of_run(run_folder or folder.parent.parent, "Say which run's model to use: --run RUN")
        data = getattr(config.model, "path", None)
    if data is None:
        raise ConfigError(
            "this run's model is no folder of `sae recommend train`. Give the recommender's: --data FOLDER."
        )
    config_of_judge = judge_config(judge) if judge else None
    with reading_for(name, folder, run_folder) as reading, ExitStack() as stack:
        asked = config_of_judge and stack.enter_context(closing(Judge(config_of_judge, reading.folder / ANSWERS)))
        return recommender_finding(
            reading.folder,
            name,
            reading.reader,
            data,
            seed=seed,
            judge=asked,
            most_judged=most_judged,
            screen=reading.screen,
        )
