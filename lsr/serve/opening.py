"""Open a bank from its file, or make one of folders of adapters, on the base model that they name."""

import argparse
from collections import Counter
from pathlib import Path

import torch

from lsr.convert.writing import check_output
from lsr.loading.base_models import load_base
from lsr.loading.files import PREFIX, InputError, read_config, read_tensors
from lsr.serve import file
from lsr.serve.bank import AdapterBank
from lsr.tuner.saved import CONFIG


def open_bank(folder: Path, base: str | None = None) -> AdapterBank:
    """Return the bank in a folder, on the base model that its adapters name, or `base`.

    Raises:
        InputError: if the folder holds none, or the base model is missing or does not fit.
    """
    header, tensors = file.read(folder)
    names = {key.partition("/")[2].rpartition("/")[0].replace("/", ".") for key in tensors}
    own = {f"{PREFIX}{name}": torch.empty(0) for name in names}  # the base model may lack a head
    return AdapterBank.load(load_base(header["base"], own, base), folder)


def _folders(source: Path) -> list[Path]:
    """Return an adapter's folder, or else those of the adapters directly inside it.

    Raises:
        InputError: if it holds none.
    """
    found = [*source.glob(CONFIG)] or sorted(source.glob(f"*/{CONFIG}"))
    if not found:
        raise InputError(f"{source}: no adapter or folder of adapters; needed: {CONFIG} in it or below it")
    return [path.parent for path in found]


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank for `python -m lsr bank`, each adapter named after its folder, and print its contents."""
    check_output(options.output, tuple(options.sources), replace=options.force)
    folders = [folder for source in options.sources for folder in _folders(source)]
    first = folders[0]
    bank = AdapterBank(load_base(read_config(first), read_tensors(first), options.base), precision=options.precision)
    for folder in folders:
        bank.add(folder.resolve().name, folder)
    bank.save(options.output, force=options.force)
    written = (options.output / file.FILE).stat().st_size
    print(f"{options.output}: {len(bank)} adapter{'s' * (len(bank) != 1)} in {options.precision}, {written:,} bytes")
    sizes = Counter[str]()
    for key, tensor in file.read(options.output)[1].items():
        sizes[key.partition("/")[0]] += tensor.nbytes
    for kind, size in sizes.items():
        print(f"{kind}: {size:,} bytes, {size / len(bank):,.0f} an adapter")
