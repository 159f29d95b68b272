"""One connection to the server, with the limits that uvicorn's own lacks."""

from __future__ import annotations

import asyncio
import sys

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from server import errors

MOST_HEADER_BYTES = 16 << 10  # of a request line with its headers, while they are read
REQUEST_S = 10  # for all headers of a request to arrive
STALL_S = 120  # for a reader to take some of what waits for it
MOST_CONNECTIONS = 512


class BoundedConnection(H11Protocol):
    """uvicorn's connection with deadlines: for the headers of a request, and for a reader that does not read.

    At `MOST_CONNECTIONS` the one that has waited longest for a request makes room for a new one; if all are being
    answered, the new one is refused with 503. uvicorn itself closes connections that are idle between requests.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Makes room, and starts to wait for the first request."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._request_deadline: asyncio.TimerHandle | None = None
        self._read_deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()
        self._watch_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the deadlines."""
        super().connection_lost(exc)
        for deadline in (self._request_deadline, self._read_deadline):
            if deadline:
                deadline.cancel()

    def data_received(self, data: bytes) -> None:
        """Reads on; a request that has begun must be whole by its deadline, however many bytes trickle in."""
        for first in range(0, len(data), MOST_HEADER_BYTES):  # h11 looks at the limit between two reads
            super().data_received(data[first : first + MOST_HEADER_BYTES])
            if self.transport.is_closing():
                return
        self._watch_request()

    def on_response_complete(self) -> None:
        """Notes since when the connection waits."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Waits for the reader, but not for ever."""
        super().pause_writing()
        self._read_deadline = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on."""
        super().resume_writing()
        if self._read_deadline:
            self._read_deadline.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request in the shape of all errors, with the status that h11 names."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(status, f"request line and headers of {MOST_HEADER_BYTES} bytes at most" if status == 431 else msg)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch_request(self) -> None:
        if not self.is_idle:
            if self._request_deadline:
                self._request_deadline.cancel()
            self._request_deadline = None
        elif self._request_deadline is None:
            self._request_deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _make_room(self) -> None:
        idle = [
            c
            for c in self.connections
            if isinstance(c, BoundedConnection) and c is not self and c.is_idle and not c.transport.is_closing()
        ]
        if idle:
            min(idle, key=lambda c: c.idle_since).transport.abort()
        else:
            self._refuse(503, f"{MOST_CONNECTIONS} connections are open; try again in a second")

    def _refuse(self, status: int, message: str) -> None:
        """Sends an error and closes, or only closes if an answer has begun already."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return

        retry = errors.RETRY if status == 503 else {}
        answer = errors.answer(status, message, {**retry, "connection": "close"})
        for event in (
            h11.Response(status_code=status, headers=answer.raw_headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
