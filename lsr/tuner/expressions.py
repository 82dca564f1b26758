"""Regular expressions of a configuration, tried before PEFT matches them: some never end, and nothing stops them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

SECONDS = 5.0  # for all expressions of a configuration and all names: usual ones take milliseconds
LONGEST = 10_000  # characters of one that is not plain: to compile it takes up to three seconds
MOST = 1000  # entries of a field, or one a layer: PEFT compiles each of them for each layer
MOST_UNSEEN = 100_000  # the same where the layers are not known yet
WHOLE = ("target_modules", "exclude_modules")  # expressions where they are no lists
PLACES = {  # how PEFT matches the entries of other fields
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "separation_rank_pattern": r"(.*\.)?({})$",
}
# What a child runs. As it may have to be killed, it says before each expression that it begins.
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
    """An entry of a field, and what PEFT asks Python's `re` for."""

    field: str
    word: str
    way: str  # fullmatch or match
    whole: str

    @property
    def is_plain(self) -> bool:
        """Whether it has no group, set or count, and one repetition at most, of its own: it always ends soon."""
        is_simple = not re.search(r"[(\[{]", self.word) and sum(map(self.word.count, "*+?")) <= 1
        return is_simple and not self.word.startswith(("*", "+", "?"))


def check_syntax(config: Mapping[str, Any], most: int = MOST_UNSEEN) -> list[Expression]:
    """Return the expressions of a PEFT configuration, of any method; all compile, within bounded time.

    Raises:
        ValueError: if one does not, or there are more than `most` in a field; names the field.
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
            raise ValueError(f"{one.field}: {one.word!r} is no regular expression: {error}") from None
    return found


def check_expressions(config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse expressions that do not compile, or take too long on the names of layers.

    What is not plain is tried in a process of its own: in this one, nothing could end it.

    Raises:
        ValueError: names the field and the expression.
    """
    names = tuple(dict.fromkeys(names))
    tried = [one for one in check_syntax(config, max(MOST, len(names))) if not one.is_plain]
    ended = _ended(tuple((one.way, one.whole) for one in tried), names) if tried else 0
    if ended < len(tried):
        late = tried[ended]
        raise ValueError(
            f"{late.field}: {late.word!r} takes over {SECONDS:g} s on the names of the layers; write it without a "
            "repetition inside another one"
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


@lru_cache(maxsize=16)  # a model may hold many adapters of one kind
def _ended(expressions: tuple[tuple[str, str], ...], names: tuple[str, ...]) -> int:
    """Return how many of the expressions end on all names, one after the other, within the time for all.

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
