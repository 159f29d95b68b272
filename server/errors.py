"""Every error of the API has one shape: {"error": {"code", "message"}}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    416: "range_not_satisfiable",
    422: "invalid_parameter",
}


class ApiError(Exception):
    """A refusal with a status and a message that says what is allowed."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def _answer(status: int, message: str) -> JSONResponse:
    body = {"error": {"code": CODES.get(status, "error" if status < 500 else "internal"), "message": message}}
    return JSONResponse(body, status)


def _place(problem: dict[str, Any]) -> str:
    return ".".join(str(part) for part in problem["loc"][1:])


def install(app: FastAPI) -> None:
    """Registers the handlers that give every error its shape."""

    @app.exception_handler(ApiError)
    def _refused(_: Request, error: ApiError) -> JSONResponse:
        return _answer(error.status, error.message)

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(422, "; ".join(f"{_place(p)}: {p['msg']}" for p in error.errors()))

    @app.exception_handler(HTTPException)
    def _http(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    def _bug(_: Request, __: Exception) -> JSONResponse:
        return _answer(500, "the server met a bug; its log has the details")
