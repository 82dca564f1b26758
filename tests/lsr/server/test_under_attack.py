"""Clients of `lsr serve` that are slow, idle, large or wrong: others get the answers of their adapter meanwhile."""

import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPSConnection

import pytest

from tests import helpers
from tests.lsr.server.asking import Request, delete, files_of, predict, put, read_answers, started
from tests.lsr.server.tenants import CHANGING, TEXTS

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
LARGE = 1 << 20  # bytes of the largest body
READ = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 300  # more than the buffers of a kernel hold
TWO_LENGTHS = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
SMALL = 4096  # bytes that a client's kernel keeps of what it is sent
ATTACKS = {  # what each of so many connections sends at once
    "nothing": (280, b""),
    "half a head": (280, HEALTH[:-2]),
    "half a body": (280, HEAD % 100 + b"{"),
    "large bodies without an end": (100, HEAD % LARGE + b" " * (LARGE - 1)),
    "requests whose answers are not read": (30, READ),
    "two lengths": (50, TWO_LENGTHS),
    "bytes that are not HTTP": (50, b"\x16\x03\x01\x02\x00\x01\r\n\r\n"),
}
QUICK = ("two lengths", "bytes that are not HTTP")


def check_others(server, expected):
    """Check that a server answers a tenant as its adapter alone does, and that it says that it runs."""
    predicted, health = server.ask(predict("ben", *TEXTS[:4]), Request("GET", "/health", {}))
    for answer, value in zip(read_answers(predicted), expected("ben", TEXTS[:4]), strict=True):
        assert answer == pytest.approx(value, abs=1e-5)
    assert health.status_code == 200


def connect(port, sent, number):
    """Open a connection from an address of its own and send bytes, as far as the server takes them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    connection.settimeout(1)
    connection.bind((f"127.1.{number // 200}.{1 + number % 200}", 0))
    with suppress(OSError):  # the server may close it before all is sent
        connection.connect(("127.0.0.1", port))
        connection.sendall(sent)
    return connection


@pytest.mark.parametrize(
    "attack", [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in ATTACKS]
)
def test_others_are_answered_while_connections_are_held(attack, bank, tmp_path, expected):
    count, sent = ATTACKS[attack]
    with started(bank, tmp_path / "log", files=256) as server, ExitStack() as held:
        for number in range(count):
            held.enter_context(connect(server.port, sent, number))
            if number % 50 == 0:
                check_others(server, expected)
        check_others(server, expected)
        held.close()
        check_others(server, expected)


VALUES = [None, True, -1, 1e308, "", "\ud800", "a cat" * 200, [], [[]], ["a"] * 65, {"a": 1}]


def damage(content, dice):
    """Change some bytes."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 3, 9))):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def ask_wrongly(dice):
    """Return a request for predictions with a value in the wrong place, or wrong bytes."""
    body = {"adapter": "ben", "texts": ["a cat"]}
    body[dice.choice([*body, "more"])] = dice.choice(VALUES)
    content = json.dumps(body).encode()
    return Request("POST", "/v1/predict", {"content": damage(content, dice) if dice.random() < 0.5 else content})


def put_wrongly(there, dice):
    """Return a request that puts an adapter of which one file is damaged."""
    files = files_of(there / "0" / dice.choice(CHANGING))
    name = dice.choice([*files])
    return put("guest", files | {name: damage(files[name], dice)})


def test_damaged_requests_and_adapters_have_a_reason_or_an_answer_and_change_no_answer_of_others(
    server, there, expected
):
    dice = random.Random(0)
    for _ in range(8):
        wrong = [ask_wrongly(dice) for _ in range(10)] + [put_wrongly(there, dice), predict("guest", "a cat")]
        for response in server.ask(*wrong):
            assert response.status_code in (200, 400, 404, 413, 422), response.text
        check_others(server, expected)
    server.ask(delete("guest"))


# nginx in front of the server.

PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"  # Debian has nginx in a folder for root
CERTIFICATE = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
AROUND = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    include {folder}/lsr.conf;
}}
"""


def write_configuration(folder, port, to):
    """Write the configuration that the documentation shows, for other files and ports, and a certificate for it."""
    openssl = shutil.which("openssl", path=PATH)
    words = [*CERTIFICATE.split(), "-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    page = (helpers.ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    replaced = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{to};",
        "/etc/ssl/certs/adapters.pem": f"{folder}/certificate",
        "/etc/ssl/private/adapters.key": f"{folder}/key",
    }
    for before, after in replaced.items():
        assert shown.count(before) == 1
        shown = shown.replace(before, after)
    helpers.write(folder / "lsr.conf", shown)
    user = "user root;" if os.geteuid() == 0 else ""  # who may read the folders of tests
    return helpers.write(folder / "nginx.conf", AROUND.format(folder=folder, user=user))


@contextmanager
def nginx(folder, to):
    """Yield the port of nginx in front of a server with this port."""
    program = shutil.which("nginx", path=PATH)
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx openssl")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = write_configuration(folder, port, to)
    with subprocess.Popen([program, "-p", folder, "-c", configuration]) as process:
        with socket.socket() as asked:
            while asked.connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, (folder / "errors").read_text()
                time.sleep(0.02)
        yield port
        process.terminate()


def unverified():
    """Return a TLS context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def status_of(port, method, path, content=None, address="127.0.0.1"):
    """Ask nginx from an address; return the status and the body."""
    source = (address, 0)
    connection = HTTPSConnection("127.0.0.1", port, timeout=30, context=unverified(), source_address=source)
    connection.request(method, path, content)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.nightly
def test_nginx_with_the_documented_configuration_answers_and_keeps_slow_clients_from_the_server(server, tmp_path):
    request = predict("ben", *TEXTS[:4])
    asked = (request.method, request.path, json.dumps(request.more["json"]))
    (direct,) = server.ask(request)
    with nginx(tmp_path, server.port) as port, ExitStack() as held:
        assert status_of(port, *asked) == (200, direct.content)
        assert status_of(port, "PUT", "/v1/adapters/ben", b"")[0] == 401
        assert status_of(port, "GET", "/metrics")[0] == 403
        assert status_of(port, "POST", "/v1/predict", b" " * (17 << 20))[0] == 413
        for _ in range(40):
            plain = socket.create_connection(("127.0.0.1", port), timeout=30)
            slow = held.enter_context(unverified().wrap_socket(plain))
            slow.sendall(HEAD % 100 + b"{")
        assert slow.recv(12) == b"HTTP/1.1 429"
        assert status_of(port, "GET", "/health")[0] == 429
        assert status_of(port, *asked, address="127.0.0.2") == (200, direct.content)
