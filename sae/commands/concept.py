"""`sae concept add`: learns a concept on a dictionary's own model and keeps it in the dictionary folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

from sae.apply.concept import ConceptByExample, Method, learn, strongest
from sae.errors import ConfigError, DataError
from sae.foundation.files import owned, write_json
from sae.foundation.screen import Screen
from sae.pipeline.config import config_of_run
from sae.pipeline.prepare import harvester_of
from sae.publish import dictionary

FILE = "concepts_by_example.json"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    return [line for line in path.read_text().splitlines() if line.strip()]


def texts_of(positive: Path | None, negative: Path | None, labelled: Path | None) -> tuple[list[str], list[str]]:
    """(positive, negative) texts: of two files with a text a line, or of a JSON-lines file with "text" and "label"."""
    if labelled is None:
        if positive is None or negative is None:
            raise ConfigError(
                "give --positive and --negative, each a file with one text a line, or one --labelled file."
            )
        return _lines(positive), _lines(negative)
    found: tuple[list[str], list[str]] = ([], [])
    for number, line in enumerate(_lines(labelled), 1):
        try:
            row = json.loads(line)
            if row["label"] not in (0, 1) or not isinstance(row["text"], str):
                raise ValueError
            found[0 if row["label"] else 1].append(row["text"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{labelled}: line {number} is no object with a "text" and a "label" (true or false).'
            ) from None
    return found


def add_concept(
    folder: Path, run: Path | None, name: str, texts: tuple[list[str], list[str]], method: str, k: int, seed: int,
    screen: Screen,
) -> ConceptByExample:  # fmt: skip
    """Learns a concept from (positive, negative) texts and keeps it in concepts_by_example.json under its name."""
    if method not in get_args(Method):
        raise ConfigError(f"--method: {method!r}; allowed are {', '.join(get_args(Method))}")
    folder = folder.resolve()
    sae = dictionary.load(folder)
    home = run or folder.parent.parent
    config = config_of_run(home, "Say which run's model to use: --run RUN")
    texts = list(dict.fromkeys(texts[0])), list(dict.fromkeys(texts[1]))  # or one would be chosen on and tested on
    both = set(texts[0]) & set(texts[1])
    if both:
        raise DataError(f"concept {name}: {len(both)} texts are in both files, such as {sorted(both)[0]!r}.")
    harvester = harvester_of(config, home, sae.config.channels, screen)
    sae.to(harvester.lm.device)
    with owned(folder), screen.stage("encode", 2, "files") as stage:
        maxima = []
        for number, part in enumerate(texts):
            maxima.append(strongest(sae, harvester, config.text.ctx_len, part))
            stage.update(number + 1)
        found = learn(name, maxima[0], maxima[1], cast(Method, method), k, seed)
        path = folder / FILE
        held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, held | {name: found.as_json()})
    return found
