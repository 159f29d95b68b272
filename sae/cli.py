"""The commands `sae-train` and `sae`: argument parsing, exit codes, and the only words on standard output."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.commands import bench as benchmarks
from sae.errors import EXIT_CODES, ConfigError, Elsewhere, SaedexError, UnavailableError

EXPORT_FORMATS = ("saelens", "dictionary_learning", "sparsify", "gemma-npz")
MEASURE_NAMES = (
    "reconstruction", "splice", "quasi_orthogonality", "description_length", "decoder", "heads", "meta_structure",
    "stability", "steering", "attribution", "probing",
)  # fmt: skip
EXPLAINER_NAMES = (
    "token", "next_token", "previous_token", "prefix", "bigram", "output", "position", "format", "keyphrase",
    "max_activation", "contrastive", "single_token",
)  # fmt: skip
SCORER_NAMES = (
    "coherence", "confidence", "ngram", "token_lookup", "detection", "fuzzing", "intruder", "judged_confidence",
    "simulation", "intervention", "embedding",
)  # fmt: skip
EPILOG = "exit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())


def _guarded(work: Callable[[], int]) -> int:
    """Runs `work`; an error that saedex expects becomes one clear message and its exit code."""
    code = _code(work)
    if "WORLD_SIZE" not in os.environ:  # else torch is loaded in any case
        return code
    from sae.foundation.distributed import leave

    return leave(code)


def _code(work: Callable[[], int]) -> int:
    try:
        return work()
    except SaedexError as error:
        if not isinstance(error, Elsewhere) and (_first() or not isinstance(error, ConfigError)):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 75
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed. Training needs it: pip install 'saedex[train]'.", file=sys.stderr)
        return UnavailableError.exit_code
    except OSError as error:
        print(f"error: {error}. Check the disk and the permissions.", file=sys.stderr)
        return 74
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in saedex; please report the lines above.", file=sys.stderr)
        return 70


def _first() -> bool:
    """Whether this is the first of the processes that torchrun started: all find the same fault in a config."""
    return os.environ.get("RANK", "0") == "0"


def _train_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, for example training_configs/quickstart.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, for example train.tokens=1e6",
    )


def _train(arguments: argparse.Namespace) -> int:
    from sae.pipeline.config import load_config

    config = load_config(arguments.config, tuple(arguments.set))
    from sae.foundation.distributed import processes
    from sae.foundation.screen import Screen
    from sae.pipeline.run import run

    with processes() as group:
        summary = run(config, Screen(quiet=not group.first), group)
        if group.first:
            print_summary(summary)
    return 0


def print_summary(summary: dict[str, Any]) -> None:
    """The figures of a finished run and what to do next."""
    from sae.pipeline.efficiency import table as efficiency_table

    print(f"\nrun {summary['run']}, {summary['seconds_total']:.0f} s in all")
    for name, found in summary["dictionaries"].items():
        metrics, labels = found["metrics"], found["labels"]
        print(f"  dictionary {name}: {found['folder']}")
        if "fvu" in metrics:
            print(f"    fvu             {metrics['fvu']:.4f}   (typical positions {metrics['fvu_typical']:.4f})")
            print(f"    l0              {metrics['l0']:.1f}")
        if "loss_recovered" in metrics:
            recovered = metrics["loss_recovered"]
            print(f"    CE increase     {metrics['ce_increase']:.3f} nats over {metrics['ce']['clean']:.3f}")
            print(
                f"    loss recovered  {recovered['mean']:.4f} against mean ablation, "
                f"{recovered['zero']:.4f} against zero"
            )
        print(f"    dead            {metrics['dead']} of {metrics['d_sae']}")
        if labels is None:
            continue
        median, beating = labels["median_balanced_accuracy"], labels["share_beating_null"]
        scored = f", median held-out balanced accuracy {median:.3f} (chance {labels['chance']})" if median else ""
        scored += "" if beating is None else f", {beating:.1%} beat the shuffled null at 95 %"
        print(f"    labelled        {labels['features_labelled']} of {labels['features_alive']} live features{scored}")
    print(efficiency_table(summary))
    print(f"\nTo look at the features:  sae serve {summary['folder']}\n")


def _explain(_: argparse.Namespace) -> int:
    from sae.pipeline.config import explain

    for key, default, text in explain():
        print(f"{key:<52} {default:<22} {text}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from sae.pipeline.config import load_config

    config = load_config(arguments.config, tuple(arguments.set))
    print(json.dumps(config.model_dump(mode="json"), indent=1))
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from sae.stream.activation_cache import remove, shared_caches

    if arguments.remove:
        print(f"{remove(arguments.remove) / 1e9:.2f} GB removed")
        return 0
    found = shared_caches()
    for folder, size, used, facts in found:
        when = time.strftime("%Y-%m-%d", time.localtime(used))
        print(f"{folder.name}  {size / 1e9:8.2f} GB  last used {when}")
        if facts:
            print(f"    {facts['stored']}  {', '.join(facts['channels'])}  contexts of {facts['ctx_len']}")
            print(f"    {facts['model']} in {facts['dtype'].removeprefix('torch.')} on {facts['device']}")
    if not found:
        print("no shared activations; `harvest.cache: shared` in a config keeps them")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from server.run import serve

    return serve(arguments.paths, arguments.host, arguments.port)


def _evaluate(arguments: argparse.Namespace) -> int:
    from sae.commands.evaluate import evaluate_again
    from sae.foundation.screen import Screen

    measures = tuple(arguments.measures.split(",")) if arguments.measures else None
    for name, folder in evaluate_again(arguments.path, arguments.run, measures, tuple(arguments.against), Screen()):
        print(f"{name}: {folder / 'report.md'}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from sae.interop.transfer import export_dictionary

    lossy = export_dictionary(arguments.dictionary, arguments.to, arguments.target)
    print(f"{arguments.target}: written and read back, equal on 1,000 random rows")
    if lossy:
        print(f"LOSSY: {lossy}. The dictionary folder stays the exact one.")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from sae.interop.transfer import import_dictionary

    sae = import_dictionary(arguments.path, arguments.source, arguments.target, arguments.hook, arguments.writes)
    print(f"{arguments.target}: {sae.config.architecture}, {sae.d_sae} latents of {sae.d_in} numbers")  # pyright: ignore
    return 0


def _interpret(arguments: argparse.Namespace) -> int:
    from sae.commands.interpret import config_of, interpret_again
    from sae.foundation.screen import Screen

    judge = None
    if arguments.judge:
        judge = {
            "base_url": arguments.judge, "model": arguments.judge_model, "structured": not arguments.unstructured,
            "concurrency": arguments.judge_concurrency, "timeout_s": arguments.judge_timeout,
            "logprobs": arguments.judge_logprobs,
            **dict(zip(("price_read", "price_written"), arguments.judge_prices, strict=True)),
        }  # fmt: skip
    config = config_of(arguments.explainers, arguments.scorers, judge)
    for name, summary in interpret_again(arguments.path, arguments.features, config, Screen()):
        beating = summary["share_beating_null"]
        null = "" if beating is None else f", {beating:.1%} beat the shuffled null"
        print(f"{name}: labelled {summary['features_labelled']} of {summary['features_alive']} live features{null}")
        if "judge" in summary:
            spent = summary["judge"]
            print(
                f"  judge: {spent['asked']} prompts asked, {spent['cached']} answered before, {spent['failed']} unreadable; "
                f"{spent['prompt_tokens']:,} tokens read, {spent['answer_tokens']:,} written"
                + ("" if spent["cost"] is None else f"; cost {spent['cost']:.2f}")
            )
    return 0


def _interpret_parser(commands: Any) -> None:
    """`sae interpret`."""
    again = commands.add_parser(
        "interpret", help="explain and score features again; publishes beside the evidence, which stays as it is"
    )
    again.add_argument("path", type=Path, help="a run folder (all its dictionaries) or one dictionary folder")
    again.add_argument("--features", metavar="A-B", help="only these features, such as 0-999; the others keep theirs")
    again.add_argument("--explainers", help=f"comma-separated; known: {', '.join(EXPLAINER_NAMES)} (default: all)")
    again.add_argument(
        "--scorers", help=f"comma-separated; known: {', '.join(SCORER_NAMES)} (default: those that need the store only)"
    )
    again.add_argument("--judge", metavar="URL", help="an OpenAI-compatible server, such as http://127.0.0.1:8080/v1")
    again.add_argument("--judge-model", default="default", metavar="NAME", help="model name, as that server lists it")
    again.add_argument(
        "--judge-concurrency",
        type=int,
        default=8,
        metavar="N",
        help="requests at once (default: 8; 1 on a slow machine)",
    )
    again.add_argument(
        "--judge-timeout", type=float, default=60.0, metavar="SECONDS", help="wait for an answer (default: 60)"
    )
    again.add_argument(
        "--judge-logprobs", action="store_true", help="ask how likely each yes and no was; adds an AUC where told"
    )
    again.add_argument(
        "--judge-prices", nargs=2, type=float, default=(None, None), metavar=("READ", "WRITTEN"),
        help="price of a million tokens read and written, to see the cost",
    )  # fmt: skip
    again.add_argument(
        "--unstructured", action="store_true", help="for servers that cannot hold answers to a JSON schema"
    )
    again.set_defaults(work=_interpret)


def _concept(arguments: argparse.Namespace) -> int:
    from sae.commands.concept import add_concept, texts_of
    from sae.foundation.screen import Screen

    texts = texts_of(arguments.positive, arguments.negative, arguments.labelled)
    found = add_concept(
        arguments.dictionary,
        arguments.run,
        arguments.name,
        texts,
        arguments.method,
        arguments.k,
        arguments.seed,
        Screen(),
    )
    for title, (value, low, high) in (
        ("balanced accuracy", found.balanced_accuracy), ("precision", found.precision), ("recall", found.recall)
    ):  # fmt: skip
        print(
            f"{title:<18} {value:.3f}  ({low:.3f} to {high:.3f}) on {found.n_positive[1]} + {found.n_negative[1]} texts"
        )
    for feature, weight in zip(found.features, found.weights, strict=True):
        print(f"  feature {feature:>6}  weight {weight:+.3f}")
    return 0


def _concept_parser(commands: Any) -> None:
    """`sae concept add`."""
    concept = commands.add_parser("concept", help="features that tell your own texts apart")
    add = concept.add_subparsers(required=True, metavar="command").add_parser(
        "add", help="learn a concept from texts that have it and texts that have not; half of them test it"
    )
    add.add_argument("dictionary", type=Path, help="dictionary folder")
    add.add_argument("--name", required=True, help="what to call it")
    add.add_argument("--positive", type=Path, help="file with one text a line that has it")
    add.add_argument("--negative", type=Path, help="file with one text a line that has it not")
    add.add_argument("--labelled", type=Path, help='instead: JSON lines with "text" and "label" (true or false)')
    add.add_argument("--method", default="difference", help="difference (of means; default), top (one feature) or tree")
    add.add_argument("--k", type=int, default=16, help="features at most (default: 16)")
    add.add_argument("--seed", type=int, default=0, help="seed of the halves (default: 0)")
    add.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")
    add.set_defaults(work=_concept)


def _transfer_parsers(commands: Any) -> None:
    """`sae eval`, `sae export` and `sae import`."""
    measure = commands.add_parser(
        "eval", help="measure dictionaries on held-out text; writes metrics.json and report.md"
    )
    measure.add_argument("path", type=Path, help="a run folder (all its dictionaries) or one dictionary folder")
    measure.add_argument(
        "--run", type=Path, help="run whose model and held-out text to use, for an imported dictionary"
    )
    measure.add_argument(
        "--measures", help=f"comma-separated; known: {', '.join(MEASURE_NAMES)} (default: those of the run's config)"
    )
    measure.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        help="dictionary folder to compare with (stability); repeat",
    )
    measure.set_defaults(work=_evaluate)
    out = commands.add_parser("export", help="write a dictionary in another library's format")
    out.add_argument(
        "dictionary", type=Path, help="dictionary folder, for example runs/quickstart/dictionaries/resid-4096"
    )
    out.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="the format")
    out.add_argument("target", type=Path, help="new folder to write")
    out.set_defaults(work=_export)
    into = commands.add_parser(
        "import", help="make a dictionary folder of another library's file; nothing in it is run"
    )
    into.add_argument("path", type=Path, help="the file or folder")
    into.add_argument("--from", dest="source", required=True, choices=(*EXPORT_FORMATS, "openai"), help="its format")
    into.add_argument("--hook", help="hook point, such as resid_post.8, where the file does not say or is wrong")
    into.add_argument("--target", dest="writes", help="hook point that a transcoder writes")
    into.add_argument("target", type=Path, help="new dictionary folder")
    into.set_defaults(work=_import)


def main(argv: list[str] | None = None) -> int:
    """`sae`: everything but training has a subcommand; `sae train` is `sae-train`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="sae", description="Sparse dictionaries of what a network has learned.", epilog=EPILOG, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    train = commands.add_parser(
        "train", help="train, evaluate, index and label dictionaries", epilog=EPILOG, formatter_class=raw
    )
    _train_parser(train)
    train.set_defaults(work=_train)
    serve = commands.add_parser("serve", help="open the feature explorer of finished runs")
    serve.add_argument(
        "paths", nargs="+", type=Path, help="run folders or dictionary folders, for example runs/quickstart"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    serve.set_defaults(work=_serve)
    _interpret_parser(commands)
    _concept_parser(commands)
    benchmarks.add_parser(commands)
    _transfer_parsers(commands)
    cache = commands.add_parser("cache", help="activations that runs share on disk: what there is; remove it")
    cache.add_argument("--remove", metavar="NAME", help="remove one by its name in the list, or `all`")
    cache.set_defaults(work=_cache)
    config = commands.add_parser("config", help="explain or check a configuration")
    config_commands = config.add_subparsers(required=True, metavar="command")
    config_commands.add_parser("explain", help="every setting with its default and meaning").set_defaults(work=_explain)
    check = config_commands.add_parser("check", help="read a configuration and print it with all defaults")
    _train_parser(check)
    check.set_defaults(work=_check)
    arguments = parser.parse_args(argv)
    return _guarded(lambda: arguments.work(arguments))


def train_main(argv: list[str] | None = None) -> int:
    """`sae-train config.yaml`."""
    parser = argparse.ArgumentParser(
        prog="sae-train",
        description="Train, evaluate, index and label the dictionaries of a configuration. The same command resumes.",
        epilog="example: sae-train training_configs/quickstart.yaml --set train.tokens=1e6\n\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _train_parser(parser)
    arguments = parser.parse_args(argv)
    return _guarded(lambda: _train(arguments))


if __name__ == "__main__":
    sys.exit(main())
