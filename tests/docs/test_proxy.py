"""nginx with the configuration that docs/how-to/serve.md shows, in front of `lsr serve`."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPSConnection

import pytest

from tests.lsr.serve.started import started
from tests.workspace import ROOT

PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"  # Debian has nginx in a folder for root
NGINX, OPENSSL = (shutil.which(name, path=PATH) for name in ("nginx", "openssl"))
PAGE = ROOT / "docs/how-to/serve.md"
BODY = json.dumps({"adapter": "ben", "texts": ["a cat"]})
UNFINISHED = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
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


@pytest.fixture(scope="module")
def server(there):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSR_TOKEN", "secret")
        with started(there / "bank", there / "behind", "--client-connections", "512") as running:
            yield running


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    """The port of nginx, with the page's configuration but for names of files and ports."""
    if not (NGINX and OPENSSL):
        pytest.skip("nginx or openssl is not installed: apt-get install nginx openssl")
    folder = tmp_path_factory.mktemp("nginx")
    words = [*CERTIFICATE.split(), "-keyout", folder / "key", "-out", folder / "certificate"]
    subprocess.run([OPENSSL, *words], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (shown,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    replaced = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{server.port};",
        "/etc/ssl/certs/adapters.pem": f"{folder}/certificate",
        "/etc/ssl/private/adapters.key": f"{folder}/key",
    }
    for before, after in replaced.items():
        assert shown.count(before) == 1
        shown = shown.replace(before, after)
    (folder / "lsr.conf").write_text(shown)
    user = "user root;" if os.geteuid() == 0 else ""  # who may read the folders of tests
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user))
    with subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"]) as process:
        while not is_listening(port):
            assert process.poll() is None, (folder / "errors").read_text()
            time.sleep(0.02)
        yield port
        process.terminate()


def is_listening(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def unverified():
    """Return a TLS context that takes the certificate which the test has made."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client(port, address="127.0.0.1"):
    return HTTPSConnection("127.0.0.1", port, timeout=30, context=unverified(), source_address=(address, 0))


def ask(connection, *request):
    connection.request(*request)
    response = connection.getresponse()
    return response.status, response.read()


def open_connections(server):
    _, text = ask(HTTPConnection("127.0.0.1", server.port), "GET", "/metrics")
    return float(re.search(rb"^lsr_connections (\S+)$", text, re.MULTILINE)[1])


def test_it_answers_as_the_server_does_and_keeps_its_limits(server, proxy):
    direct = ask(HTTPConnection("127.0.0.1", server.port), "POST", "/v1/predict", BODY)
    behind = client(proxy)
    assert direct[0] == 200
    assert [ask(behind, "POST", "/v1/predict", BODY) for _ in range(3)] == [direct] * 3
    assert ask(client(proxy), "PUT", "/v1/adapters/ben", b"")[0] == 401
    assert ask(client(proxy), "GET", "/metrics")[0] == 403
    assert ask(client(proxy), "POST", "/v1/predict", b" " * (17 << 20))[0] == 413


def test_slow_clients_of_an_address_cost_the_server_nothing_and_others_are_answered(server, proxy, trials):
    with ExitStack() as opened:
        slow = []
        for _ in range(40):
            trials["trials"] += 1
            plain = socket.create_connection(("127.0.0.1", proxy), timeout=30)
            slow.append(opened.enter_context(unverified().wrap_socket(plain)))
            slow[-1].sendall(UNFINISHED)
        assert slow[-1].recv(12) == b"HTTP/1.1 429"
        assert ask(client(proxy), "GET", "/health")[0] == 429
        assert ask(client(proxy, "127.0.0.2"), "POST", "/v1/predict", BODY)[0] == 200
        assert open_connections(server) < 10
