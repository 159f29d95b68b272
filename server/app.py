"""The application: API and explorer, behind everything that a request passes first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from server import errors, responses
from server.admission import Admission, is_download
from server.catalogue import Catalogue
from server.errors import ApiError
from server.headers import SafeHeaders
from server.hosts import KnownHosts
from server.ready_pages import ReadyPages
from server.routes import dictionaries, features

WORKERS = 8  # threads that answer; more of them take the interpreter from the event loop, which then answers nobody
STATIC = Path(__file__).parent / "static"
EXPOSED = ["etag", "x-sha256", "content-disposition"]  # headers that pages of allowed sites may read
DESCRIPTION = (
    "Features of sparse autoencoders: what each fires on, its label with scores, concepts, and the dictionaries to "
    "download. Everything is read; an answer is of one edition of a dictionary, and carries its ETag."
)
NO_UI = "<!doctype html><title>saedex</title><p>The explorer was not built into this installation. The API is at <a href='api/v1/dictionaries'>api/v1/dictionaries</a>; install saedex from a wheel, or run <code>make ui</code>."


class _CompressText(GZipMiddleware):
    """Compresses answers except downloads, which keep their length, their ranges and their hash."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_download(scope):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    catalogue: Catalogue, static: Path = STATIC, *, host_names: Iterable[str] = (), origins: Iterable[str] = ()
) -> FastAPI:
    """The ASGI application over opened dictionaries; it never writes. It answers to localhost, addresses, `host_names`.

    Pages of other sites read its answers only if they are among `origins`.
    """

    host_names = list(host_names)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = WORKERS
        yield
        for entry in catalogue.values():
            entry.close()

    shape: dict[int | str, dict[str, Any]] = {status: {"model": responses.ErrorBody} for status in (404, 422, 503)}
    app = FastAPI(
        title="saedex",
        version="1",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        docs_url=None,
        openapi_url="/api/v1/openapi.json",
        responses=shape,
        redoc_url=None,
    )
    app.state.catalogue = catalogue
    app.add_middleware(_CompressText, minimum_size=1024, compresslevel=5)
    app.add_middleware(Admission)
    app.add_middleware(KnownHosts, names=host_names)
    app.add_middleware(SafeHeaders)
    app.add_middleware(ReadyPages, catalogue=catalogue, names=host_names)
    if allowed := list(origins):
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["GET", "HEAD"], expose_headers=EXPOSED)
    errors.install(app)
    app.include_router(dictionaries.router)
    app.include_router(features.router)

    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def healthy() -> Response:
        """For whoever watches the server: it needs no thread, and says nothing of what is served."""
        return Response("ok\n", media_type="text/plain")

    @app.api_route("/api/{rest:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def unknown_api(rest: str) -> Response:
        raise ApiError(404, "no such route; see /api/v1/openapi.json")

    if (static / "assets").is_dir():
        app.mount("/assets", StaticFiles(directory=static / "assets"), name="assets")

    @app.api_route("/{rest:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def page(rest: str) -> HTMLResponse:
        index = static / "index.html"
        return HTMLResponse(index.read_text("utf-8") if index.is_file() else NO_UI)

    return app
