"""The server's connections, with time limits on each wait for a client.

A client that sends nothing, sends a byte per second, or does not read its answer costs the server a connection. So each
wait for a client has a limit of seconds; and where there is no room for another connection, the one that has kept the
server waiting longest is closed in its place.
"""

import asyncio
from socket import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lsr_server.answers import SMALL
from lsr_server.limits import FULL, Awaited, Connections, client_of
from lsr_server.refusals import refusal
from lsr_server.streaming import STREAMED

ACCEPTED = 16  # connections per turn of the event loop; one that is refused is closed four turns later
QUEUE = 2048  # connections that the kernel keeps until they are accepted
LAST_SECONDS = 1.0  # for the answers of requests that are cancelled because the server stops


class PacedFlow(FlowControl):
    """Pauses of reading: those that uvicorn wants, and those that keep a client to its pace."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_resting = False

    def pause_reading(self) -> None:
        """Pause until uvicorn resumes."""
        self.read_paused = True
        self._update()

    def resume_reading(self) -> None:
        """Resume, now or after the rest."""
        self.read_paused = False
        self._update()

    def rest(self) -> None:
        """Read nothing until the rest ends."""
        self._is_resting = True
        self._update()

    def end_rest(self) -> None:
        """Read on, unless uvicorn has paused."""
        self._is_resting = False
        self._update()

    def _update(self) -> None:
        if self.read_paused or self._is_resting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection, with limits on each wait for the client."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.address = ""
        self._connections = connections
        self._awaited: tuple[Awaited, RequestResponseCycle | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body_size = 0  # bytes
        self._is_answered = False  # while the client has not read the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or reject it at once."""
        super().connection_made(transport)
        self.flow: PacedFlow = PacedFlow(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing is called whenever something is left to be read
        if self.client is not None:  # there is no client if it has left already
            self.address = client_of(self.client[0])
        if self._connections.admit(self, self.loop.time()):
            self._await_client()
        else:
            self.end(503, FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from all counts."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._forget()

    def data_received(self, data: bytes) -> None:
        """Read on, for as long as the client has for it, and no faster than its pace."""
        body_size = self._body_size + len(data)
        super().data_received(data)
        self._await_client()
        if body_size > SMALL:
            self._rest(self._connections.pace(self, len(data), self.loop.time()))
        if self._is_awaited(Awaited.BODY):
            self._body_size = body_size
            # Only then does the connection keep what it has received.
            if self.conn.our_state is h11.SEND_RESPONSE:
                self._connections.hold(self, body_size)

    def _rest(self, seconds: float) -> None:
        # Read nothing for some seconds.
        if seconds > 0:
            self.flow.rest()
            self.loop.call_later(seconds, self.flow.end_rest)

    def handle_events(self) -> None:
        """Handle received events once the client has read the last answer: one pending answer per connection."""
        if self._is_answered:
            self.flow.pause_reading()
        else:
            super().handle_events()

    def on_response_complete(self) -> None:
        """Continue with the next request once the answer is read."""
        if self.flow.write_paused:
            self._is_answered = True
        else:
            super().on_response_complete()
        self._await_client()

    def pause_writing(self) -> None:
        """Wait until the client has read all that was sent."""
        super().pause_writing()
        self._await_client()
        self._connections.hold(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Continue after the client has read all that was sent."""
        super().resume_writing()
        if self._is_answered:
            self._is_answered = False
            super().on_response_complete()
            if not self.transport.is_closing():
                self.handle_events()
        self._await_client()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed requests in JSON."""
        self.end(400, msg)

    def end(self, status: int, reason: str) -> None:
        """Close the connection, with an answer if a request may await one; bytes not read at once are lost."""
        may_await = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._is_awaited(Awaited.REQUEST)
        if may_await and not self.flow.write_paused and not self.transport.is_closing():
            self._send(status, reason)
        self._forget()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # keeps the application from answering as well
            self.cycle.message_event.set()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _send(self, status: int, reason: str) -> None:
        headers = {"Connection": "close"}
        if status == 503:
            headers["Retry-After"] = "1"
        answer = refusal(reason, status, headers)
        head = h11.Response(status_code=status, headers=answer.raw_headers)
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _await_client(self) -> None:
        # Start the time of what the client has to do next, if that has changed.
        awaited = self._next()
        if awaited == self._awaited:
            return
        self._awaited = awaited
        self._body_size = 0
        self._stop_timer()
        if awaited is None:
            self._connections.proceed(self)
            return
        self._connections.wait(self, self.loop.time())
        seconds = self._connections.limits.seconds.get(awaited[0])
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._time_out, awaited[0], seconds)

    def _next(self) -> tuple[Awaited, RequestResponseCycle | None] | None:
        # Return what the client has to do, after the head of which request; None while it waits for the server.
        if self.flow.write_paused or self._is_between_pieces():
            return Awaited.READING, self.cycle
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return Awaited.BODY, self.cycle
        has_begun = bool(self.conn.trailing_data[0])
        if self.conn.their_state is h11.IDLE:
            is_new = self.cycle is None
            return (Awaited.HEAD if is_new or has_begun else Awaited.REQUEST), self.cycle
        return (Awaited.TURN, None) if has_begun else None

    def _is_between_pieces(self) -> bool:
        # This concerns answers that the server has whole; it still writes the pieces of a stream.
        if self.conn.our_state is not h11.SEND_BODY or self.cycle is None:
            return False
        return not self.cycle.scope["state"].get(STREAMED)

    def _is_awaited(self, awaited: Awaited) -> bool:
        return self._awaited is not None and self._awaited[0] is awaited

    def _time_out(self, awaited: Awaited, seconds: int) -> None:
        self.end(408, f"{awaited.value} took more than {seconds} seconds")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        self._stop_timer()
        self._connections.leave(self)


class Server(uvicorn.Server):
    """A server that accepts few connections per turn of the event loop, while many may wait for it in the kernel.

    Asyncio has one number for both, and accepts the connections of a turn before the first can be rejected: the process
    could run out of file descriptors.
    """

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(QUEUE)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop, and wait for what requests that are cancelled still send."""
        await super().shutdown(sockets)
        cancelled = [*self.server_state.tasks]
        if cancelled:
            await asyncio.wait(cancelled, timeout=LAST_SECONDS)


class OneLength:
    """Middleware that rejects requests with two lengths, which a proxy may interpret differently (RFC 9112, 6.1)."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a request."""
        application = self._application
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            reason = "needed: Content-Length or Transfer-Encoding, not both"
            application = refusal(reason, 400, {"Connection": "close"})
        await application(scope, receive, send)
