"""A bank from what lies on disk, on the base model that it names: one file, or a folder of adapters."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsr.convert.base_model import TASK, load_base
from lsr.convert.files import PREFIX, InputError, read_config, read_tensors
from lsr.convert.loading import METHOD
from lsr.serve import stored
from lsr.serve.bank import AdapterBank
from lsr.tuner.saved import CONFIG, first_line


def open_bank(folder: Path, base: str | None = None) -> AdapterBank:
    """Return the bank in a folder, its file or one of the adapters in it, on the base model that they name, or `base`.

    Raises:
        InputError: if there is neither, or the base model is not there or does not fit.
    """
    if not (folder / stored.FILE).is_file():
        return bank_of(adapter_folders([folder]), base)
    index, _, heads = stored.read(folder)
    own = {f"{PREFIX}{head}.{name}": s[0] for head, stacks in heads.items() for name, s in stacks.items()}
    return AdapterBank.load(load_base(index.base, own, base), folder)


def bank_of(folders: Mapping[str, Path], base: str | None = None, *, collapse: bool = False) -> AdapterBank:
    """Return a bank of adapters by name, on the base model that the first names, or `base`.

    Raises:
        InputError: if one is no adapter or does not fit the others, or the base model is not there or does not fit.
    """
    first = next(iter(folders.values()))
    model = load_base(read_config(first, METHOD), read_tensors(first), base)
    bank = AdapterBank(model, collapse=collapse, capacity=len(folders))
    for name, folder in folders.items():
        bank.add(name, folder, note=read_note(folder))
    return bank


def fields_of(folder: Path) -> Mapping[str, Any]:
    """Return what the adapters of a bank's folder say of their base model.

    Raises:
        InputError: if there is neither a bank nor an adapter.
    """
    if (folder / stored.FILE).is_file():
        return stored.read_index(folder).base
    return read_config(next(iter(adapter_folders([folder]).values())), METHOD)


def notes_of(folder: Path) -> dict[str, Any]:
    """Return the notes of a bank by adapter; no tensor is read.

    Raises:
        InputError: if there is neither a bank nor an adapter in the folder, or a note is no JSON.
    """
    if (folder / stored.FILE).is_file():
        return stored.read_index(folder).notes
    return {name: read_note(one) for name, one in adapter_folders([folder]).items()}


def adapter_folders(sources: Sequence[Path]) -> dict[str, Path]:
    """Return folders of adapters by name: the sources, and what lies in those that hold none themselves.

    Raises:
        InputError: if a source holds no adapter, or two have one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        is_adapter = (source / CONFIG).is_file()
        inside = [source] if is_adapter else sorted(path.parent for path in source.glob(f"*/{CONFIG}"))
        if not inside:
            raise InputError(f"{source}: no adapter, and no folder of adapters; needed: {CONFIG} in it or below it")
        for folder in inside:
            name = folder.resolve().name
            if name in found:
                raise InputError(f"{folder}: there is an adapter {name!r} already, {found[name]}; rename one of them")
            found[name] = folder
    return found


def read_note(folder: Path) -> Any:
    """Return what the pipeline's file beside an adapter says; None if there is none.

    Raises:
        InputError: if it is no JSON.
    """
    path = folder / TASK
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid JSON: {first_line(error)}") from None
