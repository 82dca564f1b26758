"""The parser of every command of the pipeline."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from pipeline.core.errors import MISTAKE


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the lines of its description, and reports errors in one line."""

    def __init__(self, prog: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(prog, None, description, epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number within these bounds."""

    def parsed(word: str) -> int:
        if not word.isdecimal() or not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, got {word}")
        return int(word)

    return parsed
