"""Clients that open connections and do not use them, against `lsr serve` in a process that may open few files."""

import asyncio
import json
import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from http.client import HTTPConnection

import h11
import pytest
import uvicorn

from lsr.__main__ import main
from lsr_server.connections import Protocol, Server
from lsr_server.limits import GRACE, Awaited, Connections, Limits, Pace, client_of
from tests.hostile.connections import CHUNKED, HEAD, HEALTH, LONG, another_address, connect
from tests.kit import refused
from tests.lsr.serve.asking import DESCRIBED
from tests.lsr.serve.started import started

FILES = 256
IDLE = 280
AT_ONCE = 0.5  # seconds
BODY = json.dumps({"adapter": "ben", "texts": ["a cat"]}).encode()
ANSWERS = 300  # of these, which is more than the buffers of a kernel hold for a client that does not read
SHORT = {"head": 1, "body": 2, "answer": 1, "idle": 2}  # seconds


@pytest.fixture(scope="module")
def server(there):
    with started(there / "bank", there / "few", files=FILES) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(there):
    """A server that waits for a short time, and holds few bytes."""
    seconds = [word for name, count in SHORT.items() for word in (f"--{name}-seconds", str(count))]
    with started(there / "bank", there / "hasty", *seconds, "--held", "1") as running:
        yield running


def received(connection):
    """All that arrives until the server closes."""
    arrived = bytearray()
    with suppress(ConnectionError):
        for data in iter(partial(connection.recv, 1 << 16), b""):
            arrived += data
    return bytes(arrived)


def answers(requests, data):
    """The status and body of each answer in these bytes, as h11 reads them: to so many GETs at most."""
    client = h11.Connection(h11.CLIENT)
    complete = []
    client.receive_data(data)
    for _ in range(requests):
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        response = client.next_event()
        body = bytearray()
        if not isinstance(response, h11.Response):
            break
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        complete.append((response.status_code, bytes(body)))
        if client.their_state is not h11.DONE:
            break
        client.start_next_cycle()
    return complete


def refusal(data):
    """The status and reason of the only answer in these bytes."""
    ((status, body),) = answers(2, data)
    assert list(json.loads(body)) == ["error"]
    return status, json.loads(body)["error"]


def health(server):
    """How many seconds it takes to ask whether the server runs."""
    begin = time.monotonic()
    client = HTTPConnection("127.0.0.1", server.port, timeout=30)
    client.request("GET", "/health")
    response = client.getresponse()
    content = response.read()
    assert (response.status, json.loads(content).get("status")) == (200, "ok"), content
    client.close()
    return time.monotonic() - begin


def is_open(connection):
    """Whether neither an answer nor the end has arrived."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        connection.settimeout(30)
    return False


def one_address(_):
    return "127.0.0.1"


@pytest.mark.parametrize("address", [one_address, another_address])
@pytest.mark.parametrize(
    ("sent", "room"),
    [(b"", None), (HEALTH[:-2], None), (HEAD % 100 + b"{", None), (LONG * ANSWERS, 4096)],
    ids=["nothing", "half a head", "half a body", "nothing read"],
)
def test_health_answers_at_once_while_more_connections_wait_than_the_process_may_open(
    sent, room, address, server, trials
):
    with ExitStack() as opened:
        for number in range(IDLE):
            trials["trials"] += 1
            with suppress(ConnectionError):  # by now, the server may have refused it
                opened.enter_context(connect(server, address(number), sent, room))
        time.sleep(20 * GRACE)  # until all are accepted, and none is so new that it is not closed to make room
        assert max(health(server) for _ in range(5)) < AT_ONCE
        assert server.files() < FILES
    end = time.monotonic() + 30
    while server.files() > 40 and time.monotonic() < end:  # those of the process itself
        time.sleep(0.02)
    assert server.files() <= 40
    assert "--connections: 128 in place of 512, as the process may open 256 files (ulimit -n)" in server.log.read_text()


def test_who_comes_when_there_is_no_room_is_told_so(server, trials):
    os.kill(server.process.pid, signal.SIGSTOP)
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(server)) for _ in range(200)]
        os.kill(server.process.pid, signal.SIGCONT)  # it finds all of them at once, so that none has waited for long
        time.sleep(0.2)
        assert health(server) < AT_ONCE
        trials["trials"] += len(connections)
        closed = [connection for connection in connections if not is_open(connection)]
        assert len(closed) >= 200 - 64  # half of 128, which is what one client may have
        for connection in closed:
            data = received(connection)
            assert refusal(data) == (503, "there are too many connections; try again later")
            assert b"retry-after: 1" in data.lower()


def trickle(server, begin, rest):
    """Send these bytes at once and those one by one; return what is answered, and after how many seconds."""
    with connect(server, sent=begin) as connection:
        opened = time.monotonic()
        for byte in rest:
            if not is_open(connection):
                break
            with suppress(ConnectionError):
                connection.send(bytes([byte]))
            time.sleep(0.1)
        return received(connection), time.monotonic() - opened


@pytest.mark.parametrize(
    ("begin", "before", "awaited"),
    [
        (b"", 0, "head"),
        (HEALTH, 1, "head"),
        (HEAD % 1000, 0, "body"),
        (CHUNKED, 1, "body"),  # its answer is that a length is needed, and comes before the body
    ],
    ids=["first head", "further head", "body", "body that is already answered"],
)
def test_a_byte_at_a_time_is_read_for_so_many_seconds(begin, before, awaited, hasty, trials):
    trials["trials"] += 1
    slow = b"GET /health HTTP/1.1\r\nX: " + b"a" * 1000
    data, seconds = trickle(hasty, begin, slow if awaited == "head" else b"1\r\na\r\n" * 100)
    assert SHORT[awaited] - 0.1 < seconds < SHORT[awaited] + 5  # the bytes would take a minute
    actual = answers(before + 1, data)
    if begin != CHUNKED:
        status, body = actual.pop()
        assert status == 408
        assert json.loads(body)["error"].endswith(f"took more than {SHORT[awaited]} seconds")
    assert len(actual) == before


def test_a_connection_may_be_idle_between_requests_for_longer_than_a_head_takes(hasty):
    with connect(hasty, sent=HEALTH) as connection:
        time.sleep(SHORT["head"] + 0.2)
        connection.sendall(HEALTH)
        begin = time.monotonic()
        assert [status for status, _ in answers(3, received(connection))] == [200, 200]
        assert time.monotonic() - begin > SHORT["idle"] - 0.5


@pytest.mark.parametrize(
    ("begin", "late"),
    [(b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"12345"), (HEAD % 2_000_000, b" " * 2_000_000)],
    ids=["not needed", "too long"],
)
def test_a_connection_is_not_idle_for_longer_after_a_body_that_comes_after_the_answer(begin, late, hasty):
    with connect(hasty, sent=begin) as connection:
        time.sleep(0.3)
        assert not is_open(connection)  # it is answered
        connection.sendall(late)
        sent = time.monotonic()
        received(connection)
        assert SHORT["idle"] - 0.5 < time.monotonic() - sent < SHORT["idle"] + 5


def test_who_does_not_read_is_closed_and_who_reads_slowly_gets_all_in_order(hasty, trials):
    trials["trials"] += 1
    with connect(hasty, sent=LONG * ANSWERS, room=4096) as silent, connect(hasty, sent=LONG * 60, room=4096) as slow:
        time.sleep(0.5)
        slow.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        actual = answers(70, received(slow))
        time.sleep(SHORT["answer"] + 0.5)
        lost = received(silent)
    assert [status for status, _ in actual] == [200] * 61
    assert all(json.loads(body) == DESCRIBED for _, body in actual[:-1])
    assert json.loads(actual[-1][1])["status"] == "ok"
    assert len(lost) < ANSWERS * len(actual[0][1])


def test_an_answer_in_many_pieces_is_read_within_the_time_of_one(trials):
    trials["trials"] += 1
    closed = []

    async def answering(_, receive, send):
        async def note_the_end():
            while (await receive())["type"] != "http.disconnect":
                pass
            closed.append(time.monotonic())

        noting = asyncio.create_task(note_the_end())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await noting

    async def reading(listening):
        limits = Limits(2, 2, 1 << 30, 1 << 30, {Awaited.HEAD: 9, Awaited.BODY: 9, Awaited.READING: 1})
        protocol = partial(Protocol, Connections(limits))
        server = Server(uvicorn.Config(answering, http=protocol, lifespan="off", log_level="error"))
        running = asyncio.create_task(server.serve([listening]))
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.connect(listening.getsockname())
        reader, writer = await asyncio.open_connection(sock=client, limit=1 << 14)
        writer.write(HEALTH)
        begin = time.monotonic()
        with suppress(ConnectionError):
            while await reader.read(1 << 16) and not closed:
                await asyncio.sleep(0.02)
        writer.close()
        server.should_exit = True
        await running
        return closed[0] - begin

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert 0.9 < asyncio.run(asyncio.wait_for(reading(listening), 10)) < 2


def test_large_bodies_are_read_at_a_pace_and_delay_no_small_one(there, trials):
    large = HEAD % (1 << 20) + b" " * (1 << 20)
    with started(there / "bank", there / "paced", "--body-rate", "2") as paced, ExitStack() as opened:
        trials["trials"] += 1
        begin = time.monotonic()
        sent = opened.enter_context(connect(paced))
        sending = opened.enter_context(ThreadPoolExecutor(1)).submit(sent.sendall, large)
        slowest = 0
        while is_open(sent):
            slowest = max(slowest, health(paced))
        seconds = time.monotonic() - begin
        sending.result()
    # A client has half of the rate, 1 MiB/s, and a quarter of a second of it at once. There is no
    # pause after the last part, of at most 256 KiB: the body is whole then, and is refused at once.
    assert 0.45 < seconds < 3
    assert slowest < AT_ONCE


def test_a_pace_is_that_of_its_rate_after_a_quarter_of_a_second_at_once():
    pace = Pace(1000)
    assert pace.take(250, now=100) == 0
    assert pace.take(500, now=100) == pytest.approx(0.5)
    assert pace.take(100, now=100.5) == pytest.approx(0.1)
    assert pace.take(250, now=200) == 0  # what was not used before is lost
    assert pace.take(1, now=200) == pytest.approx(0.001)


def test_unfinished_bodies_of_a_client_take_little_memory(hasty, trials):
    with ExitStack() as opened:
        connections = []
        for _ in range(20):
            trials["trials"] += 1
            connections.append(opened.enter_context(connect(hasty, sent=HEAD % 200_001 + b" " * 200_000)))
        time.sleep(0.5)
        still = [is_open(connection) for connection in connections]
        assert still == sorted(still)  # those that have waited longest are closed
        assert 0 < sum(still) <= (1 << 19) // 200_000
        assert refusal(received(connections[0])) == (503, "too many bytes wait to be sent or read; try again later")


@pytest.mark.parametrize("path", [b"GET /health", b"POST /v1/predict", b"GET /nothing"])
@pytest.mark.parametrize(
    "lengths",
    [(b"Content-Length: 3", b"Transfer-Encoding: chunked"), (b"tRANSFER-eNCODING: chunked", b"content-length: 3")],
)
def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(path, lengths, server, trials):
    trials["trials"] += 1
    sent = path + b" HTTP/1.1\r\nHost: a\r\n%s\r\n%s\r\n\r\n" % lengths + b"0\r\n\r\n" + HEALTH
    with connect(server, sent=sent) as connection:
        status, reason = refusal(received(connection))
    assert (status, reason) == (400, "needed: Content-Length or Transfer-Encoding, not both")


def test_pipelined_requests_are_answered_in_order(server):
    length = len(BODY)
    with connect(server, sent=HEALTH + HEAD % length + BODY + CHUNKED + b"0\r\n\r\n" + LONG + HEALTH[:9]) as connection:
        connection.sendall(HEALTH[9:-2] + b"Connection: close\r\n\r\n")
        actual = answers(6, received(connection))
    assert [status for status, _ in actual] == [200, 200, 411, 200, 200]
    assert json.loads(actual[1][1])["adapter"] == "ben"
    assert json.loads(actual[3][1]) == DESCRIBED


def test_bytes_that_are_not_http_after_an_answer_close_the_connection(server):
    with connect(server, sent=CHUNKED) as connection:
        time.sleep(0.2)  # until it is answered
        connection.sendall(b"no length\r\n")
        assert [status for status, _ in answers(2, received(connection))] == [411]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--connections", "0"], "argument --connections: needed: a whole number above 0, got '0'"),
        (["--head-seconds", "1.5"], "argument --head-seconds: needed: a whole number above 0, got '1.5'"),
        (["--body-seconds", "-1"], "argument --body-seconds: needed: a whole number above 0, got '-1'"),
        (["--answer-seconds", "x"], "argument --answer-seconds: needed: a whole number above 0, got 'x'"),
        (["--idle-seconds", ""], "argument --idle-seconds: needed: a whole number above 0, got ''"),
        (["--held", "0"], "argument --held: needed: a whole number above 0, got '0'"),
        (["--client-connections", "513"], "--client-connections: needed: at most --connections, 512, got 513"),
    ],
)
def test_a_limit_that_has_no_effect_or_no_sense_is_one_line(words, says):
    refused(main, ["serve", "bank", *words], says=says)


def test_too_few_files_for_any_connection_are_one_line(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))
    refused(main, ["serve", "bank"], says="needed: more than 128 files that the process may open (ulimit -n), got 128")


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%lo", "fe80::2", True),
    ],
)
def test_addresses_are_those_of_one_client_or_not(first, second, is_same):
    assert (client_of(first) == client_of(second)) == is_same
