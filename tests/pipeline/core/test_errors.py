"""What a user reads of another library's error."""

import errno
import re

import pytest

from pipeline.core.errors import UserError, exit_on_error


def test_a_message_is_one_line_for_a_terminal_too():
    assert str(UserError("a\x1b[2J\x0cb\u2028c\nd")) == "a\\x1b[2J\\x0cb\\u2028c\nd"


def test_a_long_line_is_cut_between_words_and_only_a_long_value_within():
    shown = str(UserError(" ".join(f"word{number}" for number in range(100))))
    assert len(shown) <= 300
    assert shown.startswith("word0 word1 ")
    assert shown.endswith(" word98 word99")
    assert all(re.fullmatch(r"word\d+|\.\.\.", word) for word in shown.split())
    assert len(str(UserError(f"seed: got {'x' * 400} here"))) > 290


ENDS = {  # what happens: the exit code, and the line
    UserError("params.yaml: seed: no"): (2, "before: params.yaml: seed: no"),
    OSError(errno.ENOSPC, "full", "here"): (1, "program: here: No space left on device"),
    OSError("it says more"): (1, "program: it says more"),
    MemoryError(): (1, "program: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"): (1, "program: not enough memory"),
    RuntimeError("Error: I/O error: no (os error 28)"): (1, "program: No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:6] x"): (1, "program: the file cannot be written completely"),
    KeyboardInterrupt(): (130, "stopped"),
}


@pytest.mark.parametrize("error", ENDS, ids=repr)
def test_what_a_user_or_the_machine_does_ends_in_one_line(error, capsys):
    with pytest.raises(SystemExit) as left, exit_on_error("stopped", "program", before="before: "):
        raise error
    assert (left.value.code, capsys.readouterr().err) == (ENDS[error][0], f"{ENDS[error][1]}\n")


def test_what_the_program_does_wrong_keeps_its_traceback():
    with pytest.raises(RuntimeError), exit_on_error("stopped"):
        raise RuntimeError("a bug")
