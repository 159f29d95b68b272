"""The floor of `sae bench serve`: one route of the framework that answers the same bytes, behind the same connections."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response

from server.run import settings


def constant_app(n_bytes: int) -> FastAPI:
    """An application whose one route answers `n_bytes` bytes, without middleware."""
    app, body = FastAPI(), b"x" * n_bytes

    @app.get("/constant/{dictionary}/features/{feature}")
    async def constant(dictionary: str, feature: int) -> Response:
        return Response(body, media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(constant_app(int(sys.argv[2])), **settings("127.0.0.1", int(sys.argv[1])))
