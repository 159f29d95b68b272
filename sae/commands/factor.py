"""`sae factor RUN --hook mlp_hidden.8 --out FOLDER`: semi-nonnegative factors of activations, as a dictionary."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding


@dataclass(frozen=True)
class FactorSettings:
    """How many factors, how sparse, and how long."""

    hook: str
    rank: int = 100
    share: float = 0.01
    tokens: int = 100_000
    passes: int = 3
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        from sae.errors import ConfigError

        if self.rank < 2 or self.passes < 1 or self.tokens < 1 or not 0 < self.share <= 1:
            raise ConfigError(
                f"--rank {self.rank}, --share {self.share}, --tokens {self.tokens}, --passes {self.passes}: wanted are 2 factors or "
                "more, a share above 0 and up to 1, and 1 token and pass or more."
            )


@final
class Factor(Command):
    """Factorises activations of a run's text and writes the factors as a dictionary folder."""

    name = "factor"
    help = "factorise activations of a run's model: another kind of dictionary"
    order = 47
    epilog = (
        "The result is a dictionary folder. `sae index FOLDER --model RUN --text FILES` gives it contexts, labels and scores, and "
        "`sae eval` measures it like any other. docs/factor.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the place, and the size."""
        parser.add_argument("run_folder", type=Path, metavar="RUN", help="run whose model and text to use")
        parser.add_argument("--hook", required=True, help="hook point, such as mlp_hidden.8")
        parser.add_argument("--out", type=Path, required=True, help="dictionary folder to write")
        parser.add_argument("--rank", type=int, default=100, help="factors (default: 100)")
        parser.add_argument(
            "--share", type=float, default=0.01, help="share of neurons that a factor keeps (default: 0.01)"
        )
        parser.add_argument("--tokens", type=float, default=100_000, help="tokens to read (default: 100,000)")
        parser.add_argument("--passes", type=int, default=3, help="passes over them (default: 3)")
        parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")

    def run(self, arguments: Namespace) -> int:
        """Factorises and prints how well."""
        from sae.apply.finding import as_text

        settings = FactorSettings(
            arguments.hook, arguments.rank, arguments.share, tokens=int(arguments.tokens), passes=arguments.passes,
            seed=arguments.seed,
        )  # fmt: skip
        finding = factorise_run(arguments.run_folder, arguments.out, settings)
        print(as_text(finding, arguments.out))
        return 0


def factorise_run(run_folder: Path, out: Path, settings: FactorSettings) -> Finding:
    """Factorises activations of a run's training text and writes the new dictionary folder `out`; returns its finding."""
    from sae.errors import ConfigError
    from sae.foundation.new_folder import write_new_folder
    from sae.model.hookpoints import Channel, HookPoint
    from sae.pipeline.borrowed import borrowed_run, prepared_for
    from sae.pipeline.stage import perform
    from sae.pipeline.stages.factor import Factor as FactorStage
    from sae.publish.dictionary import publish

    settings.check()
    try:
        hook = HookPoint.parse(settings.hook)
    except ValueError as error:
        raise ConfigError(f"--hook: {error}") from None
    run, _ = borrowed_run(run_folder, run_folder)
    stage = FactorStage(
        hook,
        out.name,
        rank=settings.rank,
        share=settings.share,
        tokens=settings.tokens,
        passes=settings.passes,
        seed=settings.seed,
    )
    with prepared_for(run, (Channel(hook),)) as (prepare, _):
        perform([prepare, stage], run)
        publish(out, stage.fitted[0].sae, stage.provenance(run), write_new_folder)
        stage.forget(run)
    return stage.write_finding(out)
