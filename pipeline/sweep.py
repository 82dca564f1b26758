"""`python -m pipeline.sweep`: print the experiments of a sweep, one command a line, for whatever runs lines.

Values are written as for `dvc exp run -S`: `seed=0,1`, `seed=range(0,5)`, `lsr.rank_shape=[2,2],[3]`. Nothing is
printed unless every combination is valid, and of those that would run alike the first one alone is.
"""

import argparse
import itertools
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path

from dvc.exceptions import InvalidArgumentError
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps, to_hydra_overrides
from hydra.errors import HydraException

from pipeline import params
from pipeline.core import console
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error, first_line
from pipeline.params.reading import read_yaml

PROGRAM = "python -m pipeline.sweep"
FILES = (params.PARAMS, *(path for path, _ in params.TABLES.values()))
MOST = 10_000  # combinations; each is checked, in a tenth of a second
Overrides = Mapping[str, Sequence[str]]  # of one experiment: the file, and what changes in it


class Everything(params.TokenizeView, params.FactorizeInitView, params.TrainView, params.EvaluateView):
    """All that an experiment depends on: two that see the same run alike."""


def commands(values: Sequence[str], name: str) -> list[str]:
    """Return the command of each experiment; `name` and a number name it.

    Raises:
        UserError: if a file is missing or broken, or a combination is not valid: with one line for each mistake, all
            at once.
    """
    for file in FILES:  # what is not there or broken says so once, before it is copied
        read_yaml(file)
    found: dict[str, Overrides] = {}
    mistakes = []
    sweep = combinations(values)
    progress = console.progress("check", len(sweep), "experiments", console.errors)
    with tempfile.TemporaryDirectory() as folder, progress as advance:
        for overrides in sweep:
            advance(1)
            try:
                found.setdefault(seen(overrides, Path(folder)), overrides)
            except UserError as error:
                mistakes += [f"{' '.join(_words(overrides))}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    if len(found) < len(sweep):
        alike = f"{len(sweep) - len(found)} of {len(sweep)} experiments would run like another one, so are left out"
        console.errors.print(f"sweep: {alike}", soft_wrap=True)
    return [command(overrides, f"{name}-{number}") for number, overrides in enumerate(found.values(), start=1)]


def combinations(values: Sequence[str]) -> list[Overrides]:
    """Return what changes in each experiment of a sweep.

    Raises:
        UserError: if a value cannot be read, or if there are more than MOST combinations.
    """
    try:
        overrides = to_path_overrides(values)
        count = 1
        for parsed in to_hydra_overrides([word for words in overrides.values() for word in words]):
            if parsed.is_sweep_override() and parsed.is_discrete_sweep():
                count *= sum(1 for _ in itertools.islice(parsed.sweep_iterator(), MOST + 1))
        if count > MOST:
            raise UserError(f"sweep: over {MOST:,} experiments; at most that are allowed")
        return get_hydra_sweeps(overrides)
    except (HydraException, InvalidArgumentError, ValueError) as error:
        raise UserError(f"sweep: {' '.join(values)}: {' '.join(str(error).split())}") from None


def seen(overrides: Overrides, folder: Path) -> str:
    """Return all that an experiment depends on, once it is checked; the files are changed as copies in a folder.

    Raises:
        UserError: if a file is none of params.yaml and the tables, or with a line for each mistake.
    """
    for file in FILES:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / file)
    for path, words in overrides.items():
        if Path(path) not in FILES:
            raise UserError(f"{path}: values are in {', '.join(map(str, FILES))}")
        try:
            apply_overrides(folder / path, list(words))
        except (InvalidArgumentError, HydraException) as error:
            raise UserError(f"{path}: {first_line(error.__cause__ or error)}") from None
    with chdir(folder):
        return params.load(Everything).model_dump_json()


def command(overrides: Overrides, name: str) -> str:
    """Return the line that runs an experiment, for a shell."""
    changes = itertools.chain.from_iterable(("-S", word) for word in _words(overrides))
    return shlex.join(["dvc", "exp", "run", "--temp", "--name", name, *changes])


def _words(overrides: Overrides) -> Iterator[str]:
    for path, words in overrides.items():
        yield from words if Path(path) == params.PARAMS else (f"{path}:{word}" for word in words)


def main(words: Sequence[str] | None = None) -> None:
    """Print the commands.

    Raises:
        SystemExit: with exit code 2, if there is a mistake.
    """
    top = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("values", nargs="+", metavar="KEY=VALUES", help="as for dvc exp run -S")
    top.add_argument("--name", default="sweep", help="of the experiments, before a number (%(default)s)")
    options = top.parse_args(words)
    if not re.fullmatch("[A-Za-z0-9_-]+", options.name):
        top.error(f"--name: letters, digits, - and _ are allowed, got {options.name!r}")
    with exit_on_error("stopped"):
        print("\n".join(commands(options.values, options.name)))


if __name__ == "__main__":
    main()
