"""The console script `lsr`, also `python -m lsr_server`: it serves graphs without importing torch, which takes seconds.

All other commands are those of `python -m lsr`.
"""

import sys
from functools import partial

from lsr_onnx.folder import has_graphs
from lsr_server.command import (
    ARGUMENTS,
    DESCRIPTION,
    FAILED,
    SCRIPT,
    SERVE,
    TORCH,
    Parser,
    add_arguments,
    report,
    report_stop,
    serve_graphs,
)


def script() -> int:
    """Run the command in the arguments of the process; return the exit code."""
    try:
        return _run(sys.argv[1:])
    except KeyboardInterrupt:  # during the imports
        return report_stop()


def _run(words: list[str]) -> int:
    if words[:1] == [SERVE]:
        called = f"{SCRIPT} {SERVE}"
        parser = Parser(prog=called, description=DESCRIPTION)
        add_arguments(parser, ARGUMENTS)
        options = parser.parse_args(words[1:])
        if options.runtime != TORCH or has_graphs(options.bank):
            return report(called, partial(serve_graphs, options))
    try:
        from lsr.__main__ import main
    except ModuleNotFoundError as error:
        print(f"{SCRIPT}: needs {error.name}; without it, only graphs are served: --runtime onnx", file=sys.stderr)
        return FAILED
    return main(words, SCRIPT)


if __name__ == "__main__":
    sys.exit(script())
