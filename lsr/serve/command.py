"""`python -m lsr bank`: the folders of many adapters become one file."""

import argparse
import json
from pathlib import Path

from lsr.convert.base_model import load_base
from lsr.convert.files import InputError, check_output, read_config, read_tensors
from lsr.serve.bank import AdapterBank
from lsr.serve.stored import FILE
from lsr.tuner.saved import CONFIG, first_line

NOTE = "task.json"  # the pipeline's: what an adapter reads, and the names of its labels


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank, and print what it holds.

    Raises:
        InputError: if a folder holds no adapter, two have one name, or an adapter does not fit the others.
    """
    check_output(options.output, tuple(options.sources), replace=options.force)
    folders = adapter_folders(options.sources)
    first = next(iter(folders.values()))
    base = load_base(read_config(first, "LSR"), read_tensors(first), options.base)
    bank = AdapterBank(base, collapse=options.collapse, capacity=len(folders))
    for name, folder in folders.items():
        bank.add(name, folder, note=read_note(folder))
    bank.save(options.output, force=options.force)
    written = (options.output / FILE).stat().st_size
    print(f"{options.output}: {len(bank)} adapter{'s' * (len(bank) != 1)}, {written:,} bytes")
    print(f"{bank.nbytes:,} bytes in memory beyond the base model")


def adapter_folders(sources: list[Path]) -> dict[str, Path]:
    """Return folders of adapters by name: the sources, and what lies in those that hold none themselves.

    Raises:
        InputError: if a source holds no adapter, or two have one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        inside = [source] if (source / CONFIG).is_file() else sorted(path.parent for path in source.glob(f"*/{CONFIG}"))
        if not inside:
            raise InputError(f"{source}: no adapter, and no folder of adapters; needed: {CONFIG} in it or below it")
        for folder in inside:
            name = folder.resolve().name
            if name in found:
                raise InputError(f"{folder}: there is an adapter {name!r} already, {found[name]}; rename one of them")
            found[name] = folder
    return found


def read_note(folder: Path) -> object:
    """Return what the pipeline's file beside an adapter says; None if there is none.

    Raises:
        InputError: if it is no JSON.
    """
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid JSON: {first_line(error)}") from None
