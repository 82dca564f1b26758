"""The page of all commands: what each prints with `--help`, in lines of a fixed width, and the targets of make."""

import io
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from unittest import mock

from lsr.__main__ import COMMANDS, parser
from lsr_server.command import SCRIPT

WIDTH = 100  # characters
MODULES = (
    *("pipeline.add", "pipeline.check", "pipeline.predict", "pipeline.score", "pipeline.summary"),
    *("pipeline.keep", "pipeline.previous", "pipeline.experiments", "pipeline.arena", "pipeline.compare"),
    *("stages.tokenize", "stages.factorize_init", "stages.train", "stages.evaluate"),
    *("benchmarks.speed", "benchmarks.size", "benchmarks.setfit_tenants", "benchmarks.unseen_domains"),
    *("docs.tables", "docs.capabilities", "docs.plots", "docs.notebook", "examples.completions"),
)


def commands(makefile: str) -> Iterator[str]:
    """Yield a section for each command with the text of its `--help`, and one with the targets of a Makefile."""
    with mock.patch.dict(os.environ, COLUMNS=str(WIDTH + 2)):  # argparse leaves two columns free
        yield from _section(SCRIPT, parser(SCRIPT).format_help())
        for name in COMMANDS:
            yield from _section(f"{SCRIPT} {name}", get_subcommand_help(name))
        for module in MODULES:
            yield from _section(f"python -m {module}", get_module_help(module))
    targets = [line.removeprefix("## ") for line in makefile.splitlines() if line.startswith("## ")]
    yield from _section("make", "\n".join(targets))


def get_subcommand_help(name: str) -> str:
    """Return what `lsr NAME --help` prints."""
    return capture_help(lambda: parser(SCRIPT).parse_args([name, "--help"]))


def get_module_help(name: str) -> str:
    """Return what `python -m NAME --help` prints."""
    with mock.patch.object(sys, "argv", [name, "--help"]), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the module has been imported already
        return capture_help(lambda: runpy.run_module(name, run_name="__main__", alter_sys=True))


def capture_help(call: Callable[[], object]) -> str:
    """Return what a call prints that ends as `--help` does.

    Raises:
        RuntimeError: if it goes on.
    """
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            call()
        except SystemExit:
            return out.getvalue()
    raise RuntimeError("the command ran in place of printing its help")


def _section(title: str, text: str) -> Iterator[str]:
    yield from (f"## {title}", "", "```text", text.rstrip(), "```", "")
