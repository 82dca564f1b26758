"""Whatever params.yaml and the tables hold, it is refused in few plain lines, or the adapter is started with it."""

from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from pipeline import params, stage
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models
from stages import factorize_init
from tests import mutations, workspace
from tests.stages.running import TOKENIZE, run
from tests.torture.children import check_plain, ended
from tests.torture.trials import Case, Trial

FILES = ("params.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml")
SHORT, LONGEST = 21, 300  # lines of a refusal, and characters of each
NUMBERS = (-1, 0, 1, 2, 3, 7, 24, 25, 10**3, 16_384, 16_385, 2**31, 2**32, 2**63, 10**30)
FLOATS = (-1.0, 0.0, 1e-300, 0.5, 1.0, 1.5, 1e9, 1e300, float("inf"), float("nan"))
WORDS = (
    "",
    " ",
    "none",
    "all",
    "auto",
    "own",
    "default",
    "query",
    "(a+)+$",
    "[",
    "é",
    "a.b",
    "../..",
    "\0",
    "x" * 2000,
)
TEXTS = (
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"? ",
    b"- ",
    b": ",
    b"\n",
    b"\t",
    b"\xff",
    *map(str.encode, "[]{}'|%"),
)


def value(random: Random, old: Any) -> Any:
    """Draw a value that may or may not be allowed where the old one stands."""
    choices: list[Callable[[], Any]] = [
        lambda: random.choice(NUMBERS),
        lambda: random.choice(FLOATS),
        lambda: random.choice(WORDS),
        lambda: random.choice((None, True, False, {}, [])),
        lambda: [random.choice((*NUMBERS, *WORDS)) for _ in range(random.randint(1, 4))],
        lambda: [old] if random.random() < 0.5 else {"key": old},
    ]
    if isinstance(old, int | float) and not isinstance(old, bool):
        choices += [lambda: old * random.choice((-1, 2, 3, 10, 100)), lambda: old + random.choice((-1, 1))] * 2
    elif isinstance(old, str) and old:
        choices += [lambda: old[:-1], lambda: old + old[-1]]
    elif isinstance(old, list):
        choices += [lambda: old + old, lambda: [value(random, one) for one in old]]
    return random.choice(choices)()


def change(random: Random, content: dict[str, Any], rows: tuple[str, ...]) -> str:
    """Change, remove or misspell a key of params.yaml, or one of the rows that count; return which."""
    found = list(mutations.places(content))
    *sections, last = random.choice([place for place in found if place[0] in rows] or found)
    section = content
    for key in sections:
        section = section[key]
    match random.randrange(10):
        case 0:
            del section[last]
        case 1:
            section[f"{last}s"] = section.pop(last)
        case _:
            section[last] = value(random, section[last])
    return ".".join((*sections, last))


def spoil(random: Random, content: bytes) -> bytes:
    """Replace a few bytes of a file by what means something in YAML, or by any."""
    spoilt = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(spoilt))
        spoilt[at : at + random.randrange(9)] = random.choice((*TEXTS, random.randbytes(3)))
    return bytes(spoilt)


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Change values and bytes of the three files that a user writes; what the schema calls fine starts an adapter."""
    check_plain(ended(workspace.make(folder / "there"), tokenize), {0})
    files = {name: (folder / "there" / name).read_bytes() for name in FILES}

    def trial(changed: dict[str, bytes]) -> None:
        for name, content in (files | changed).items():
            (folder / "there" / name).write_bytes(content)
        try:
            with chdir(folder / "there"):
                params.load(params.FactorizeInitView)
        except UserError as error:
            lines = str(error).splitlines()
            assert 0 < len(lines) <= SHORT, lines
            assert all(0 < len(line) <= LONGEST for line in lines), lines
        else:
            check_plain(ended(folder / "there", start), {0, 2})
        for name, content in (files | changed).items():
            assert (folder / "there" / name).read_bytes() == content, f"{name} was changed"

    for number in range(count):
        name = random.choice((*FILES, *[FILES[0]] * 5))
        path = folder / "changed.yaml"
        path.write_bytes(files[name])
        if random.random() < 0.2:
            what = "bytes"
            path.write_bytes(spoil(random, files[name]))
        else:
            content = workspace.read_yaml(path)
            rows = () if name == FILES[0] else ("glue", "tiny")
            what = ", ".join(change(random, content, rows) for _ in range(random.choice((1, 1, 1, 2, 3))))
            workspace.write_yaml(path, content)
        yield Trial(f"{number}: {name}: {what}", partial(trial, {name: path.read_bytes()}))


def tokenize() -> None:
    """Make the tokens that an adapter may start from."""
    run(TOKENIZE)


def start() -> None:
    """Run the stage that builds the model and starts the adapter: what it takes is never refused before it."""
    view = params.load(params.FactorizeInitView)
    refused = None
    try:
        adapters.check_section(base_models.outline(view.base_model), view.section, view.base_model)
    except UserError as error:
        refused = error
    stage.run(factorize_init.main, params.FactorizeInitView)
    assert refused is None, refused


CASES = (Case("mistakes", 1000, trials),)
