"""Open a bank from disk, from one file or a folder of adapters, on the base model that it names."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsr.convert.writing import check_output
from lsr.loading.adapters import METHOD
from lsr.loading.base_models import load_base
from lsr.loading.files import PREFIX, InputError, read_config, read_task, read_tensors
from lsr.serve import file
from lsr.serve.bank import AdapterBank
from lsr.tuner.saved import CONFIG


def open_bank(folder: Path, base: str | None = None) -> AdapterBank:
    """Return the bank in a folder, either its file or the adapters in it, on the base model that they name, or `base`.

    Raises:
        InputError: if the folder holds neither, or the base model is missing or does not fit.
    """
    if not (folder / file.FILE).is_file():
        return bank_of(adapter_folders([folder]), base)
    index, contents = file.read(folder)
    own = {f"{PREFIX}{head}.{name}": s[0] for head, stacks in contents["heads"].items() for name, s in stacks.items()}
    return AdapterBank.load(load_base(index.base, own, base), folder)


def bank_of(folders: Mapping[str, Path], base: str | None = None, *, collapse: bool = False) -> AdapterBank:
    """Return a bank of adapters by name, on the base model that the first names, or `base`.

    Raises:
        InputError: if one is no LSR adapter or does not fit the others, or the base model is missing or does not fit.
    """
    first = next(iter(folders.values()))
    model = load_base(read_config(first, METHOD), read_tensors(first), base)
    bank = AdapterBank(model, collapse=collapse, capacity=len(folders))
    for name, folder in folders.items():
        bank.add(name, folder, note=read_task(folder))
    return bank


def read_notes(folder: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the configuration fields about the base model of a bank's folder, and the notes by adapter.

    Raises:
        InputError: if the folder holds neither a bank nor an adapter, or a note is not valid JSON.
    """
    if (folder / file.FILE).is_file():
        index = file.read_index(folder)
        return index.base, index.notes
    folders = adapter_folders([folder])
    fields = read_config(next(iter(folders.values())), METHOD)
    return fields, {name: read_task(one) for name, one in folders.items()}


def adapter_folders(sources: Sequence[Path]) -> dict[str, Path]:
    """Return the adapter folders by name: each source that is one, and the adapters directly inside the others.

    Raises:
        InputError: if a source holds no adapter, or two have the same name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        is_adapter = (source / CONFIG).is_file()
        inside = [source] if is_adapter else sorted(path.parent for path in source.glob(f"*/{CONFIG}"))
        if not inside:
            raise InputError(f"{source}: no adapter or folder of adapters; needed: {CONFIG} in it or below it")
        for folder in inside:
            name = folder.resolve().name
            if name in found:
                raise InputError(f"{folder}: another adapter is named {name!r}, {found[name]}; rename one of them")
            found[name] = folder
    return found


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank for `python -m lsr bank`, and print its contents."""
    check_output(options.output, tuple(options.sources), replace=options.force)
    bank = bank_of(adapter_folders(options.sources), options.base, collapse=options.collapse)
    bank.save(options.output, force=options.force)
    written = (options.output / file.FILE).stat().st_size
    print(f"{options.output}: {len(bank)} adapter{'s' * (len(bank) != 1)}, {written:,} bytes")
    print(f"{bank.nbytes:,} bytes of memory in addition to the base model")
