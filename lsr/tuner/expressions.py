"""Regular expressions of a configuration, tried out before PEFT uses them: some never finish and cannot be stopped."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

SECONDS = 5.0  # for all expressions of a configuration and all names: usual ones take milliseconds
LONGEST = 10_000  # characters of an expression that is not plain: compiling it takes up to three seconds
MOST = 1000  # entries per field, unless there are more layers: PEFT compiles each entry for each layer
MOST_UNSEEN = 100_000  # the same if the layers are not known yet
WHOLE = ("target_modules", "exclude_modules")  # expressions, unless they are lists
PLACES = {  # how PEFT matches the entries of other fields
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "separation_rank_pattern": r"(.*\.)?({})$",
}
# The program of the child process. It may be killed, so it prints a dot before each expression that it starts on.
TRIAL = """
import json, re, sys
expressions, names = json.load(sys.stdin)
for way, expression in expressions:
    print(end=".", flush=True)
    match = getattr(re.compile(expression), way)
    for name in names:
        match(name)
"""


class Expression(NamedTuple):
    """An entry of a field, and the function of `re` that PEFT uses on it."""

    field: str
    word: str
    way: str  # fullmatch or match
    whole: str

    @property
    def is_plain(self) -> bool:
        """Whether it has no groups, sets or counts and at most one repetition, so that it always finishes quickly."""
        is_simple = not re.search(r"[(\[{]", self.word) and sum(map(self.word.count, "*+?")) <= 1
        return is_simple and not self.word.startswith(("*", "+", "?"))


def check_syntax(config: Mapping[str, Any], most: int = MOST_UNSEEN) -> list[Expression]:
    """Return the expressions of a PEFT configuration of any method, checked to compile in bounded time.

    Raises:
        ValueError: if one does not, or a field has more than `most`; names the field.
    """
    found = list(_expressions(config, most))
    for one in found:
        if len(one.word) > LONGEST and not one.is_plain:
            raise ValueError(
                f"{one.field}: an expression of {len(one.word):,} characters; at most {LONGEST:,} are allowed"
            )
        try:
            re.compile(one.whole)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{one.field}: {one.word!r} is not a valid regular expression: {error}") from None
    return found


def check_expressions(config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse expressions that do not compile or that take too long on the names of layers.

    Expressions that are not plain are tried in a child process, because in this process nothing could stop them.

    Raises:
        ValueError: names the field and the expression.
    """
    names = tuple(dict.fromkeys(names))
    tried = [one for one in check_syntax(config, max(MOST, len(names))) if not one.is_plain]
    ended = _ended(tuple((one.way, one.whole) for one in tried), names) if tried else 0
    if ended < len(tried):
        late = tried[ended]
        raise ValueError(
            f"{late.field}: {late.word!r} takes over {SECONDS:g} s on the names of the layers; write it without "
            "nested repetitions"
        )


def _expressions(config: Mapping[str, Any], most: int) -> Iterator[Expression]:
    for field in WHOLE:
        if isinstance(word := config.get(field), str):
            yield Expression(field, word, "fullmatch", word)
    for field, place in PLACES.items():
        value = config.get(field)
        words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple | dict) else []
        if field.endswith("_pattern") and field != "layers_pattern" and not isinstance(value, dict | None):
            raise ValueError(f"{field}: must hold names of layers and values, got {value!r}")
        if len(words) > most:
            raise ValueError(f"{field}: {len(words):,} entries; at most {most:,} are allowed for these layers")
        for word in words:
            if isinstance(word, str):
                yield Expression(field, word, "match", place.replace("{}", word))


@lru_cache(maxsize=16)  # a model may have many adapters with the same configuration
def _ended(expressions: tuple[tuple[str, str], ...], names: tuple[str, ...]) -> int:
    """Return how many of the expressions, in order, finish on all names within the total time limit.

    Raises:
        ValueError: if they cannot be tried.
    """
    command, given = [sys.executable, "-I", "-S", "-c", TRIAL], json.dumps([expressions, names])
    try:
        subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=SECONDS)  # noqa: S603 our own words, no shell
    except subprocess.TimeoutExpired as late:
        return max(0, len(late.stdout or b"") - 1)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"regular expressions cannot be tried: {error}") from None
    return len(expressions)
