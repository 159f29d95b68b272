"""The application: API and explorer, behind everything that a request passes first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from feature_store.lookup.meaning import Meaning
from feature_store.people.database import People
from server import errors, responses
from server.catalogue import Catalogue
from server.errors import ApiError
from server.explorer import Explorer
from server.middleware.admission import Admission, is_download
from server.middleware.headers import SafeHeaders
from server.middleware.hosts import KnownHosts
from server.middleware.key_holders import KeyHolders
from server.middleware.ready_pages import ReadyPages
from server.preview.page import feature_at
from server.routes import comparisons, dictionaries, features, findings, neuronpedia, neuronpedia_people, search
from server.routes import people as people_routes

ROUTES = (dictionaries, features, comparisons, findings, search, people_routes, neuronpedia, neuronpedia_people)
WORKERS = 8  # threads that answer; more of them take the interpreter from the event loop, which then answers nobody
STATIC = Path(__file__).parent / "static"
EXPOSED = ["etag", "x-sha256", "content-disposition"]  # headers that pages of allowed sites may read
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": responses.ErrorBody} for status in (404, 422, 503)}
DESCRIPTION = (
    "Features of sparse autoencoders: what each fires on, its label with scores, concepts, and the dictionaries to "
    "download. Dictionaries are read; an answer is of one edition of one, and carries its ETag. What people say of features "
    "is written with a key."
)


class _CompressText(GZipMiddleware):
    """Compresses answers except downloads, which keep their length, their ranges and their hash."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_download(scope):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    catalogue: Catalogue,
    static: Path = STATIC,
    *,
    people: People | None = None,
    needs_key: bool = False,
    meaning: Meaning | None = None,
    host_names: Iterable[str] = (),
    origins: Iterable[str] = (),
) -> FastAPI:
    """The ASGI application over opened dictionaries; it writes into `people` alone. It answers to localhost, addresses, `host_names`.

    `meaning` answers searches by meaning. With `needs_key` nobody reads anything without a key of `people`. Pages of other sites read its answers, or show the explorer in a frame, only if they are among `origins`.
    """

    host_names, origins = list(host_names), list(origins)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
        yield
        for entry in catalogue.entries():
            entry.close()
        if people:
            people.close()

    app = FastAPI(
        title="saedex",
        version="1",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        docs_url=None,
        openapi_url="/api/v1/openapi.json",
        responses=ERRORS,
        redoc_url=None,
    )
    app.state.catalogue, app.state.people, app.state.meaning = catalogue, people, meaning
    _add_middleware(app, catalogue, people if needs_key else None, host_names=host_names, origins=origins)
    errors.install(app, [route for routes in ROUTES for route in routes.router.routes])
    for routes in ROUTES:
        app.include_router(routes.router)

    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def healthy() -> Response:
        """For whoever watches the server: it needs no thread, and says nothing of what is served."""
        return Response("ok\n", media_type="text/plain")

    @app.api_route("/api/{rest:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def unknown_api(rest: str) -> Response:
        raise ApiError(404, "no such route; see /api/v1/openapi.json")

    _add_explorer(app, Explorer(static))

    return app


def _add_middleware(
    app: FastAPI, catalogue: Catalogue, keys: People | None, *, host_names: list[str], origins: list[str]
) -> None:
    """What every request passes, the last first; with `keys` nobody passes without one of theirs."""
    app.add_middleware(_CompressText, minimum_size=1024, compresslevel=5)
    app.add_middleware(Admission)
    app.add_middleware(KnownHosts, names=host_names)
    app.add_middleware(SafeHeaders, origins=origins)
    app.add_middleware(ReadyPages, catalogue=catalogue, names=host_names)
    if keys:
        app.add_middleware(KeyHolders, people=keys)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "HEAD"], expose_headers=EXPOSED)


def _add_explorer(app: FastAPI, explorer: Explorer) -> None:
    """The explorer's files; its page answers every address that nothing else answers."""
    every = {"methods": ["GET", "HEAD"], "include_in_schema": False}

    @app.api_route("/assets/{name}", **every)
    async def asset(request: Request, name: str) -> Response:
        return explorer.asset(request, name)

    @app.api_route("/robots.txt", **every)
    async def robots() -> Response:
        return Response("User-agent: *\nDisallow: /api/\n", media_type="text/plain")

    @app.api_route("/favicon.ico", **every)
    async def icon() -> Response:
        return Response(status_code=204)

    @app.api_route("/{rest:path}", **every)
    async def page(request: Request, rest: str) -> Response:
        return await anyio.to_thread.run_sync(feature_at, request, rest) or explorer.answer()
