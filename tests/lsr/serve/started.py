"""`lsr serve` in a process of its own."""

import multiprocessing
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lsr.__main__ import main
from tests.workspace import ROOT

CONTEXT = multiprocessing.get_context("fork")  # from a process that has imported much
WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "peft", "safetensors", "scipy", "tensorly", "pandas"])
from lsr_server.__main__ import script
sys.argv = ["lsr", *sys.argv[1:]]
sys.exit(script())
"""


@dataclass
class Started:
    process: multiprocessing.Process
    port: int
    log: Path

    def files(self):
        """How many files the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())


def _run(log, files, words):
    with log.open("wb", buffering=0) as written:
        os.dup2(written.fileno(), 2)
    os.closerange(3, 1024)  # what the process of the tests has open
    sys.stderr = os.fdopen(2, "w", buffering=1)  # in place of that of pytest
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    main(["serve", *words, "--port", "0"])


def _port(process, log):
    """Return the port that a server names when it can be asked."""
    while True:
        line = re.search(r"^http://127\.0\.0\.1:(\d+): ", log.read_text(), re.MULTILINE)
        if line:
            return int(line[1])
        assert process.is_alive(), log.read_text()
        time.sleep(0.02)


@contextmanager
def started(bank, log, *words, files=None, is_new=False):
    """Yield a server of a bank as soon as it answers, whose process may open so many `files`.

    It is forked from this process, which has imported torch already; with `is_new`, it is a new one, which shares no
    memory with this one.
    """
    context = multiprocessing.get_context("spawn") if is_new else CONTEXT
    log.touch()
    process = context.Process(target=_run, args=(log, files, [str(bank), *words]))
    process.start()
    try:
        yield Started(process, _port(process, log), log)
    finally:
        process.kill()
        process.join()
    assert "Traceback" not in log.read_text()


@contextmanager
def started_without_torch(folder, *words):
    """Yield the port of a server of graphs, in a process that cannot import torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", str(folder), *words, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        port = re.search(r"^http://127\.0\.0\.1:(\d+): ", line)
        assert port, line + process.stderr.read()
        try:
            yield int(port[1])
        finally:
            process.terminate()
            errors = process.stderr.read()
        assert "Traceback" not in errors, errors


def run_without_torch(*words):
    """Run the script `lsr` in a process that cannot import torch; return its exit code and what it wrote to stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return run.returncode, run.stderr
