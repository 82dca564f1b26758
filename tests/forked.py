"""`python -m` and `dvc` without the seconds in which they import torch: forked from a process that has done so.

What is forked has the working folder, the environment and the streams of the command that asked for it, and imports our
code from where a new interpreter would. Run as a script, this file is the process that others are forked from.
"""

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from multiprocessing import connection
from pathlib import Path

CONTEXT = multiprocessing.get_context("fork")  # from a process that has imported much and run nothing

# Of the stages and of DVC, what takes long; nothing of ours, of which a test may have a copy of its own.
PRELOADED = (
    *("accelerate", "datasets", "pandas", "peft", "pydantic"),
    *("rich.progress", "rich.table", "ruamel.yaml", "scipy.stats", "sklearn.metrics", "tensorly"),
    *("transformers.models.auto.modeling_auto", "transformers.trainer", "transformers.models.roberta.modeling_roberta"),
    *("dvc.cli", "dvc.cli.parser", "dvc.repo", "dvc.repo.experiments", "dvc.stage"),
)
# Needs no package, not even those that each interpreter looks for: it begins in a hundredth of a second.
SCRIPT = """#!{python} -IS
import json, os, signal, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
socket.send_fds(asked, [b"."], [0, 1, 2])
asked.sendall(json.dumps([{words!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
asked.shutdown(socket.SHUT_WR)
process = int.from_bytes(asked.recv(4), "big")
signal.signal(signal.SIGTERM, lambda *_: os.kill(process, signal.SIGTERM))
sys.exit(int(asked.recv(9) or 255))
"""


@cache
def scripts() -> Path:
    """Return a folder for a PATH, with the commands `python` and `dvc`; what they ask ends with this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    address = str(folder / "asked")
    for name, words in {"python": [], "dvc": ["-m", "dvc"]}.items():
        script = SCRIPT.format(python=sys.executable, address=address, words=words)
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o700)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-I", __file__, address]
    server = subprocess.Popen(
        line, cwd="/", env=os.environ | offline, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    said = server.stdout.readline()
    assert said == "ready\n", f"said {said!r}, ended with {server.poll()}"
    atexit.register(server.communicate)  # at the end of its standard input, it ends
    return folder


def serve(address: str) -> None:
    """Fork a process for each connection, until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    running = {}  # process and connection, by what is ready when the process has ended
    while sys.stdin not in (ready := connection.wait([listening, sys.stdin, *running])):
        for sentinel in running.keys() & set(ready):
            process, asked = running.pop(sentinel)
            process.join()
            with suppress(BrokenPipeError), asked:  # who asked may have been stopped
                asked.sendall(str(process.exitcode % 256).encode())
        if listening in ready:
            asked, _ = listening.accept()
            process = CONTEXT.Process(target=answer, args=(asked,))
            process.start()
            with suppress(BrokenPipeError):
                asked.sendall(process.pid.to_bytes(4, "big"))
            running[process.sentinel] = process, asked


def answer(asked: socket.socket) -> None:
    """Run the command of a connection, as it would run where it was typed."""
    streams = socket.recv_fds(asked, 1, 3)[1]
    with asked.makefile(encoding="utf-8") as file:
        words, folder, environment = json.load(file)
    asked.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 for as long as the process
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    run(words)


def run(words: list[str]) -> None:
    """Do as `python -m MODULE`, `python FILE` and `python -`, with a program on standard input, do."""
    first, *words = [word for word in words if word != "-u"]
    if first == "-m":
        module, *words = words
        sys.path[:0] = [str(Path.cwd()), *_named_paths()]
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-":
        sys.path[:0] = [str(Path.cwd()), *_named_paths()]
        sys.argv = [first, *words]
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})  # noqa: S102 as python does
    else:
        sys.path[:0] = [str(Path(first).parent.resolve()), *_named_paths()]
        sys.argv = [first, *words]
        runpy.run_path(first, run_name="__main__")


def _named_paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    serve(sys.argv[1])
