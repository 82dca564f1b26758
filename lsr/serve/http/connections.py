"""The connections of the server: HTTP, read from a socket and written to it."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lsr.serve.http.refusals import refusal


class Protocol(H11Protocol):
    """HTTP, in which the answer to bytes that are none is JSON, too."""

    def send_400_response(self, msg: str) -> None:
        """Answer with an error, and close the connection."""
        answer = refusal(msg, 400, {"Connection": "close"})
        head = h11.Response(status_code=400, headers=answer.raw_headers)
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
