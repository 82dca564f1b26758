"""One-line errors for users' mistakes: where, what, and what is allowed."""

import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

HALVES = re.compile("[\ud800-\udfff]")  # lone surrogates, which JSON can hold and UTF-8 cannot
# And what a terminal interprets as a command or a line break.
CONTROL = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029]|{HALVES.pattern}")
MAX_SHOWN = 12  # words of a list in a message
LONGEST_LINE = 300  # characters of a message, before a command's name is prepended
# Words that a cut leaves incomplete, but no long values.
CUT_FIRST = re.compile(r"^\S{1,40}(?!\S)")
CUT_LAST = re.compile(r"(?<!\S)\S{1,40}$")


shortened = reprlib.repr  # a value as Python writes it, cut short so that it does not hide the reason next to it


class InputError(ValueError):
    """A mistake that the user can fix: one line that says where, what, and what is allowed.

    Its length is limited, because it may quote an untrusted file.
    """

    def __str__(self) -> str:
        return format_rejection(super().__str__())


def format_rejection(text: str) -> str:
    """Write a message as one line for a terminal: every message that rejects an input goes through this function.

    Line breaks become spaces, and control characters are escaped. A text of more than LONGEST_LINE characters loses its
    middle, from word to word.
    """
    line = escape(text.replace("\n", " "))
    if len(line) <= LONGEST_LINE:
        return line
    half = (LONGEST_LINE - len(" ... ")) // 2
    return f"{CUT_LAST.sub('', line[:half]).rstrip()} ... {CUT_FIRST.sub('', line[-half:]).lstrip()}"


def escape(text: str, but: str = "") -> str:
    """Escape the control characters of an untrusted text, except those in `but`, so that a terminal can show it."""
    return CONTROL.sub(lambda match: match[0] if match[0] in but else ascii(match[0])[1:-1], text)


def some_of(words: Sequence[str], most: int = MAX_SHOWN) -> str:
    """List the first words of many, and the number of the others."""
    first = ", ".join(words[:most])
    more = len(words) - most
    if more > 0:
        return f"{first} and {more} more"
    return first


@contextmanager
def wrap_errors(where: object, *error_types: type[BaseException], to: type[InputError] = InputError) -> Iterator[None]:
    """Convert errors of these types into a one-line error that begins with `where`.

    Raises:
        InputError: in place of them, or the given subclass of it.
    """
    try:
        yield
    except error_types as error:
        raise to(f"{where}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Return the first informative line of an error's message, or the error's type if there is no message."""
    message = str(error).strip() or type(error).__name__
    first, *others = message.splitlines()
    if others and first.endswith(":"):  # torch's messages begin with such headings
        return others[0].strip()
    return first
