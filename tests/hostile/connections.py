"""Attacks by connections that are not used as they should be; each is a function of a server, and ends by itself."""

import socket
import time
from contextlib import suppress

SECONDS = 30
PAUSE = 1  # seconds until a connection that was closed is opened again, and between two bytes
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
TWO_LENGTHS = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
LONG = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
MANY = 600  # connections: more than a server takes


def another_address(number):
    return f"127.1.{number // 200}.{1 + number % 200}"


def connect(server, address="127.0.0.1", sent=b"", room=None):
    """A connection from an address, on which this is sent; its kernel has so much room for what it receives."""
    connection = socket.socket()
    if room is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.settimeout(30)
    connection.bind((address, 0))
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(sent)
    return connection


def keep(server, count, sent=b"", trickled=b"", room=None):
    """Keep so many connections of as many addresses open, and send on each a byte of `trickled` at a time."""
    begun = time.monotonic()
    opened = {}
    while (passed := time.monotonic() - begun) < SECONDS:
        for number in range(count):
            if number not in opened:
                with suppress(OSError):
                    opened[number] = connect(server, another_address(number), sent, room)
                time.sleep(PAUSE / count)  # not all at once
            elif trickled or room is None:
                byte = trickled[int(passed) : int(passed) + 1]
                if not is_kept(opened[number], byte, reads=room is None):
                    opened.pop(number).close()
        time.sleep(max(0, begun + passed + PAUSE - time.monotonic()))
    for connection in opened.values():
        connection.close()


def is_kept(connection, byte, *, reads):
    """Whether the server has not closed a connection, on which a byte is sent."""
    connection.setblocking(False)
    try:
        if byte:
            connection.send(byte)
        return not reads or connection.recv(1 << 16) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def silent_connections(server):
    keep(server, MANY)


def slow_heads(server):
    keep(server, MANY, HEALTH[:-2], b"X: " + b"a" * SECONDS)


def slow_bodies(server):
    keep(server, MANY, HEAD % 1000, b" " * SECONDS)


def large_unfinished_bodies(server):
    keep(server, 150, HEAD % (1 << 20) + b" " * ((1 << 20) - 1))


def unread_answers(server):
    keep(server, 30, LONG * 300, room=4096)


def two_lengths(server):
    keep(server, 100, TWO_LENGTHS)


def bytes_that_are_not_http(server):
    keep(server, 100, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")


def connections_that_are_closed_at_once(server):
    begun = time.monotonic()
    while time.monotonic() - begun < SECONDS:
        with suppress(OSError), connect(server, sent=HEALTH):
            time.sleep(0.005)


ATTACKS = (
    silent_connections,
    slow_heads,
    slow_bodies,
    large_unfinished_bodies,
    unread_answers,
    two_lengths,
    bytes_that_are_not_http,
    connections_that_are_closed_at_once,
)
