"""The options that say which language model judges, the same for every command that asks one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.interpret.judging.judge import JudgeConfig


def add_judge_arguments(parser: ArgumentParser) -> None:
    """Address and model of a server that is asked, and how."""
    judge = parser.add_argument_group("judge", "a language model that reads prompts")
    judge.add_argument("--judge", metavar="URL", help="an OpenAI-compatible server, such as http://127.0.0.1:8080/v1")
    judge.add_argument("--judge-model", default="default", metavar="NAME", help="model name, as that server lists it")
    judge.add_argument(
        "--judge-concurrency",
        type=int,
        default=8,
        metavar="N",
        help="requests at once (default: 8; 1 on a slow machine)",
    )
    judge.add_argument(
        "--judge-timeout", type=float, default=60.0, metavar="SECONDS", help="wait for an answer (default: 60)"
    )
    judge.add_argument(
        "--judge-logprobs",
        action="store_true",
        help="ask for the probability of every yes and no; adds an AUC if the server tells them",
    )
    judge.add_argument(
        "--judge-prices",
        nargs=2,
        type=float,
        default=(None, None),
        metavar=("READ", "WRITTEN"),
        help="price of a million tokens read and written, to see the cost",
    )
    judge.add_argument(
        "--unstructured", action="store_true", help="for servers that cannot force answers into a JSON schema"
    )


def judge_settings(arguments: Namespace) -> dict[str, Any] | None:
    """The settings of `JudgeConfig` that the options give; None without a judge."""
    if not arguments.judge:
        return None
    return {
        "base_url": arguments.judge,
        "model": arguments.judge_model,
        "structured": not arguments.unstructured,
        "concurrency": arguments.judge_concurrency,
        "timeout_s": arguments.judge_timeout,
        "logprobs": arguments.judge_logprobs,
        **dict(zip(("price_read", "price_written"), arguments.judge_prices, strict=True)),
    }


def judge_config(settings: dict[str, Any]) -> JudgeConfig:
    """The settings as a value; raises `ConfigError` naming the option that is wrong."""
    from pydantic import ValidationError

    from sae.errors import ConfigError
    from sae.interpret.judging.judge import JudgeConfig

    try:
        return JudgeConfig(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"--judge: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
