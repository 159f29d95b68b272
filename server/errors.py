"""Every error of the API has one shape: {"error": {"code", "message"}}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import duckdb
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from server.middleware.headers import HEADERS

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    416: "range_not_satisfiable",
    421: "unknown_host",
    422: "invalid_parameter",
    431: "headers_too_large",
    501: "not_here",
    503: "busy",
}
RETRY = {"retry-after": "1"}


class ApiError(Exception):
    """A refusal with a status, a message that says what is allowed, and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


def answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response of an error."""
    body = {"error": {"code": CODES.get(status, "error" if status < 500 else "internal"), "message": message}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})


def _place(problem: dict[str, Any]) -> str:
    return ".".join(str(part) for part in problem["loc"][1:])


def _methods_at(request: Request, routes: Iterable[BaseRoute]) -> str:
    """The methods that some route takes at the address of a request; the explorer's addresses take GET and HEAD."""
    at = [route for route in routes if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for route in at for method in route.methods or ()} or {"GET", "HEAD"}))


def install(app: FastAPI, routes: Iterable[BaseRoute] = ()) -> None:
    """Registers the handlers that give every error its shape; `routes` are those of the API."""

    @app.exception_handler(ApiError)
    def _refused(_: Request, error: ApiError) -> JSONResponse:
        return answer(error.status, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, "; ".join(f"{_place(p)}: {p['msg']}" for p in error.errors()))

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            methods = _methods_at(request, routes)
            return answer(405, f"nothing is written here; allowed are {methods}", {"allow": methods})
        return answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(duckdb.InterruptException)
    def _interrupted(_: Request, __: duckdb.InterruptException) -> JSONResponse:
        return answer(503, "the answer took too long and was given up; try again later", RETRY)

    @app.exception_handler(duckdb.OutOfMemoryException)
    def _too_large(_: Request, __: duckdb.OutOfMemoryException) -> JSONResponse:
        return answer(503, "the answer needs more memory than the server gives one; ask for less, or try again", RETRY)

    @app.exception_handler(Exception)
    def _bug(_: Request, __: Exception) -> JSONResponse:
        return answer(500, "the server met a bug; its log has the details")
