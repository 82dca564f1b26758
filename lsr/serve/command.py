"""`python -m lsr bank`: combine the folders of many adapters into one file."""

import argparse

from lsr.convert.writing import check_output
from lsr.serve.opening import adapter_folders, bank_of
from lsr.serve.stored import FILE


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank and print its contents.

    Raises:
        InputError: if a folder holds no adapter, two have the same name, or an adapter does not fit the others.
    """
    check_output(options.output, tuple(options.sources), replace=options.force)
    bank = bank_of(adapter_folders(options.sources), options.base, collapse=options.collapse)
    bank.save(options.output, force=options.force)
    written = (options.output / FILE).stat().st_size
    print(f"{options.output}: {len(bank)} adapter{'s' * (len(bank) != 1)}, {written:,} bytes")
    print(f"{bank.nbytes:,} bytes of memory in addition to the base model")
