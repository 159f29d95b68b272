"""The page behind the address of a feature, MODEL/SOURCE/INDEX: Open Graph's tags for other sites, and the way to the explorer for people."""

from __future__ import annotations

import re
from html import escape
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.catalogue import Catalogue
from server.edition import Edition

INDEX = re.compile(r"[0-9]{1,9}")


def feature_at(request: Request, path: str) -> Response | None:
    """The page of the feature at an address as Neuronpedia's, MODEL/SOURCE/INDEX; None if no dictionary has that id.

    The explorer's own address stands behind a `#`, which no server ever sees. This page says in its head what the feature
    is (https://ogp.me), and a browser goes on from it to the explorer at once.
    """
    parts = path.split("/")
    catalogue: Catalogue = request.app.state.catalogue
    entry = catalogue.get(parts[1]) if len(parts) == 3 and INDEX.fullmatch(parts[2]) else None
    if entry is None:
        return None

    source, feature = parts[1], int(parts[2])
    edition = entry.edition()
    embed = "?embed=true" if request.query_params.get("embed") == "true" else ""
    target = f"../../#/{quote(source, safe='')}/features/{feature}{embed}"
    tags = _tags(request, source, edition, feature) if feature < edition.store.n_features else ""
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{tags}'
        f'<meta http-equiv="refresh" content="0; url={escape(target)}"></head>\n'
        f'<body><a href="{escape(target)}">Feature {feature} of {escape(source)}</a></body></html>\n'
    )
    return HTMLResponse(page, headers={"cache-control": "no-cache"})


def title_of(feature: int, label: str | None) -> str:
    """The feature's number and label, or what is said if it has none."""
    return f"Feature {feature}: {label}" if label else f"Feature {feature}, which no rule fits"


def _tags(request: Request, source: str, edition: Edition, feature: int) -> str:
    row, card = edition.store.columns.row(feature), edition.card
    model = card.model.name
    said = f"Fires on {row.density:.2%} of the tokens of {model} at {card.sae['hook']}."
    base = str(request.base_url)
    picture = f"{base}api/v1/dictionaries/{quote(source, safe='')}/features/{feature}/picture.png"
    title = title_of(feature, row.label)
    facts = {
        "og:type": "website",
        "og:site_name": "saedex",
        "og:title": title,
        "og:description": said,
        "og:url": f"{base}{quote(model, safe='')}/{quote(source, safe='')}/{feature}",
        "og:image": picture,
        "og:image:alt": f"{title}. {said}",
        "twitter:card": "summary_large_image",
    }
    lines = [f'<meta property="{name}" content="{escape(value)}">\n' for name, value in facts.items()]
    return f"<title>{escape(title)}</title>\n{''.join(lines)}"
