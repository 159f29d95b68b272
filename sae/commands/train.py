"""`sae train config.yaml`, which is `sae-train config.yaml`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, final

from sae.commands.command import Command, add_config_arguments

if TYPE_CHECKING:
    from feature_store.dictionary_files import LabelSummary, Metrics
    from sae.pipeline.summary import RunSummary


@final
class Train(Command):
    """Trains, evaluates, indexes and labels the dictionaries of a config."""

    name = "train"
    help = "train, evaluate, index and label the dictionaries of a config; the same command resumes"
    order = 0

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The config."""
        add_config_arguments(parser)

    def run(self, arguments: Namespace) -> int:
        """Performs all stages of the run and prints its figures."""
        from sae.pipeline.config import load_config

        config = load_config(arguments.config, tuple(arguments.set))  # a wrong config is refused before torch is loaded
        from sae.foundation.distributed import connected
        from sae.foundation.screen import Screen
        from sae.pipeline.run import run

        with connected() as processes:
            summary = run(config, Screen(quiet=not processes.is_first), processes)
            if processes.is_first:
                print_summary(summary)

        return 0


def print_summary(summary: RunSummary) -> None:
    """The figures of a finished run and what to do next."""
    from sae.pipeline.efficiency import table

    print(f"\nrun {summary.run}, {summary.seconds_total:.0f} s in all")

    for name, figures in summary.dictionaries.items():
        print(f"  dictionary {name}: {figures.folder}")
        _print_metrics(figures.metrics)
        if figures.labels is not None:
            _print_labels(figures.labels)

    print(table(summary.seconds, summary.rates, summary.peak_bytes))
    print(f"\nTo look at the features:  sae serve {summary.folder}\n")


def _print_metrics(metrics: Metrics) -> None:
    if metrics.fvu is not None:
        random = (metrics.controls or {}).get("random", {}).get("fvu")
        beside = f"; random directions {random:.4f}" if random else ""
        print(f"    fvu             {metrics.fvu:.4f}   (typical positions {metrics.fvu_typical:.4f}{beside})")
        print(f"    l0              {metrics.l0:.1f}")
    if metrics.loss_recovered is not None and metrics.ce is not None:
        recovered = metrics.loss_recovered
        print(f"    CE increase     {metrics.ce_increase:.3f} nats over {metrics.ce['clean']:.3f}")
        print(f"    loss recovered  {recovered.mean:.4f} against mean ablation, {recovered.zero:.4f} against zero")
    print(f"    dead            {metrics.dead} of {metrics.d_sae}")


def _print_labels(labels: LabelSummary) -> None:
    print(f"    labelled        {labels.features_labelled} of {labels.features_alive} live features")
    random = labels.controls.get("random")
    if labels.median_f2 is not None and labels.median_precision is not None:
        beside = f", of random directions' {random.median_f2:.3f}" if random and random.median_f2 is not None else ""
        print(
            f"    label scores    F2 {labels.median_f2:.3f}{beside}; precision {labels.median_precision:.3f} (medians, held out)"
        )
    if labels.floor is not None and labels.share_beating_control is not None:
        print(
            f"                    {labels.share_beating_control:.1%} above F2 {labels.floor:.3f}, which 5 % of random directions' exceed"
        )
