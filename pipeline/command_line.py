"""The parser of every command of the pipeline."""

import argparse
from typing import NoReturn

from pipeline.errors import MISTAKE


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")
