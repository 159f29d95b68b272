"""Neuronpedia's files: MODEL/SOURCE with features, activations and explanations, which its import reads."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, final

from feature_store.lookup import neuronpedia
from sae.errors import ArtefactError
from sae.foundation.screen import Progress
from sae.interop.dashboard import Dashboard, Page, Published, activations_of, as_line
from sae.interop.hook_names import our_hook
from sae.interop.json_rows import JsonRow, first_row, json_rows
from sae.interop.published_pages import (
    MOST_TOKENS,
    Listed,
    PublishedContext,
    PublishedFeature,
    PublishedPages,
    PublishedText,
)

CREATOR = "saedex"  # whoever imports the files gives them an account of the site
LEVEL = 5  # of gzip


@final
class Neuronpedia(Dashboard):
    """release, model, sourceset and source as .jsonl; features, activations and explanations in batches of .jsonl.gz.

    An explanation's kind stands in `notes`: the site refuses kinds that it does not know.
    """

    def read(self, folder: Path) -> PublishedPages:
        """The pages of the one source in a folder: MODEL/SOURCE of the public bucket, or a folder that holds it."""
        home = _home(folder)
        first = next(json_rows(home, "features"), JsonRow({}, str(home)))
        model, sourceset = (first_row(home / f"{name}.jsonl") for name in ("model", "sourceset"))
        hook, layers = first.text("hookName", ""), model.number("layers", 0)
        return PublishedPages(
            model=model.text("id", "") or first.text("modelId", "unknown"),
            n_layers=int(layers) or None,
            hook=our_hook(hook) or hook or f"layer {first.text('layer', 'unknown')}",
            architecture=sourceset.text("type", "") or "unknown",
            features=map(_feature, json_rows(home, "features")),
            contexts=map(_context, json_rows(home, "activations")),
            texts=map(_text, json_rows(home, "explanations")),
        )

    def write(self, published: Published, folder: Path, progress: Progress) -> None:
        """Files under `folder`/MODEL/SOURCE."""
        place, author = published.place, {"creatorId": CREATOR, "createdAt": published.card.created}
        home = folder / place.model.replace("/", "--") / place.source
        home.mkdir(parents=True)
        for name, row in _heads(published).items():
            (home / f"{name}.jsonl").write_bytes(as_line({**row, **author}))

        for number, pages in enumerate(published.batches(progress)):
            tables = {"features": [], "activations": [], "explanations": []}
            for page in pages:
                for table, rows in _rows(published, page).items():
                    tables[table] += [as_line({"createdAt": published.card.created, **row}) for row in rows]
            for table, lines in tables.items():
                if lines:
                    path = home / table / f"batch-{number}.jsonl.gz"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(gzip.compress(b"".join(lines), LEVEL, mtime=0))


def _rows(published: Published, page: Page) -> dict[str, list[dict[str, Any]]]:
    place, creator = published.place, {"creatorId": CREATOR}
    features = [neuronpedia.feature_row(place, page.detail) | {"sourceSetName": published.card.name}]
    explanations = neuronpedia.explanation_rows(place, page.detail)
    return {
        "features": [row | creator for row in features],
        "activations": [row | creator for row in activations_of(place, page)],
        "explanations": [
            row | {"authorId": CREATOR, "typeName": None, "notes": f"saedex, {row['typeName']}"} for row in explanations
        ],
    }


def _heads(published: Published) -> dict[str, dict[str, Any]]:
    """The rows about the whole: what it is called, and what it was made of."""
    card, place, shown = published.card, published.place, {"visibility": "PUBLIC"}
    words = f"{card.sae['d_sae']} features of {card.sae['hook']}, {card.sae['architecture']}"
    return {
        "release": {"name": card.name, "description": words, "creatorName": CREATOR, "urls": [], **shown},
        "model": {
            "id": place.model, "displayName": place.model, "displayNameShort": place.model.rpartition("/")[2],
            "instruct": False, "layers": card.model.n_layers or 0, "neuronsPerLayer": 0, "owner": "", **shown,
            "updatedAt": card.created,
        },
        "sourceset": {
            "modelId": place.model, "name": card.name, "description": words, "type": card.sae["architecture"],
            "creatorName": CREATOR, "releaseName": card.name, "urls": [], **shown,
        },
        "source": {
            "id": place.source, "modelId": place.model, "setName": card.name, "hasDashboards": True, **shown,
            "num_prompts": published.store.meta["tokens_all"] // published.store.meta["ctx_len"],
            "num_tokens_in_prompt": published.store.meta["ctx_len"],
            "dataset": published.store.meta.get("text"),
        },
    }  # fmt: skip


def _home(folder: Path) -> Path:
    """The folder of a source: this one, or the only one below it."""
    homes = sorted({path.parent for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}features")})
    if len(homes) == 1:
        return homes[0]
    there = (
        f"{len(homes)} sources: {', '.join(str(home.relative_to(folder)) for home in homes[:5])}" if homes else "none"
    )
    raise ArtefactError(
        f"{folder}: holds {there}. Give the folder of one source, MODEL/SOURCE, with features/batch-0.jsonl.gz in it."
    )


def _feature(row: JsonRow) -> PublishedFeature:
    return PublishedFeature(
        row.feature("index"),
        row.number("frac_nonzero", 0.0),
        promoted=Listed(*row.pairs("pos_str", "pos_values", str)),
        suppressed=Listed(*row.pairs("neg_str", "neg_values", str)),
        neighbours=Listed(*row.pairs("topkCosSimIndices", "topkCosSimValues", int)),
    )


def _context(row: JsonRow) -> PublishedContext:
    tokens, acts = row.pairs("tokens", "values", str)
    if not 0 < len(tokens) <= MOST_TOKENS:
        raise row.error(f"a context of {len(tokens)} tokens; 1 to {MOST_TOKENS} can be")
    source, number = row.text("dataSource", ""), row.text("dataIndex", "")
    return PublishedContext(row.feature("index"), tokens, acts, f"{source} {number}".strip() or "text")


def _text(row: JsonRow) -> PublishedText:
    explainer = row.text("typeName", "") or row.text("notes", "") or "neuronpedia"
    return PublishedText(row.feature("index"), explainer, row.text("description", ""))
