"""`lsr serve` in a process of its own, forked from this one, which has imported torch already."""

import multiprocessing
import os
import re
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lsr.__main__ import main

CONTEXT = multiprocessing.get_context("fork")


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


@contextmanager
def started(bank, log, *words, files=None):
    """Yield a server of a bank, as soon as it answers, whose process may open so many `files`."""
    process = CONTEXT.Process(target=_run, args=(log, files, [str(bank), *words]))
    process.start()
    try:
        while not (found := re.search(r"^http://127\.0\.0\.1:(\d+): ", log.read_text() if log.exists() else "", re.M)):
            assert process.is_alive(), log.read_text()
            time.sleep(0.02)
        yield Started(process, int(found[1]), log)
    finally:
        process.kill()
        process.join()
    assert "Traceback" not in log.read_text()
