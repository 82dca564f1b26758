"""Join adapters, adapters with tenants, and banks of one base model into one bank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lsr.loading.base_models import load_base
from lsr.loading.contents import TENANTS, Contents, read_contents, read_task
from lsr.serve.bank import AdapterBank
from lsr.serve.common import fingerprint, split
from lsr.serve.file import FILE
from lsr.tuner.files import CONFIG, PREFIX, Files
from lsr.tuner.mistakes import InputError


class Part(NamedTuple):
    """What a folder adds to a bank: adapters by name, what they share, and the precision if it is a bank."""

    folder: Path
    adapters: Mapping[str, Contents]
    common: Files | None = None
    precision: str | None = None


def joined(sources: Sequence[Path], base: str | None = None, precision: str | None = None) -> AdapterBank:
    """Return a bank of all adapters in some folders, on the base model that the first names, or on `base`.

    A source is an adapter, named after its folder, an adapter with tenants, a bank, or a folder of these. The precision
    is that of the banks, or float32.

    Raises:
        InputError: as `AdapterBank.add` and `AdapterBank.of_tenants`; if not all share the same adapter, or none; if
            banks differ in precision and none is given.
    """
    parts = [_read(folder, base) for source in sources for folder in _folders(source)]
    first, known = parts[0], sorted({part.precision for part in parts if part.precision is not None})
    for part in parts:
        if fingerprint(part.common) != fingerprint(first.common):
            raise InputError(f"{part.folder}: its adapters do not share the common one of those in {first.folder}")
    if precision is None and len(known) > 1:
        raise InputError(f"banks in {' and '.join(known)}: choose a precision with --precision")
    model = None
    if first.common is None:
        one = next(iter(first.adapters.values()))
        model = load_base(one.base, {f"{PREFIX}{key}": value for key, value in one.heads.items()}, base)
    bank = AdapterBank.on(first.common, base if model is None else model, precision=precision or (*known, "float32")[0])
    for part in parts:
        bank.add_all(part.adapters)
    return bank


def _folders(source: Path) -> list[Path]:
    found = [one for one in (source, *sorted(source.glob("*"))) if (one / CONFIG).exists() or (one / FILE).exists()]
    return [source] if not found or found[0] == source else found


def _read(folder: Path, base: str | None) -> Part:
    if (folder / FILE).exists():
        bank = AdapterBank.load(base, folder)
        adapters = {name: replace(bank.contents(name), source=f"{folder}: {name}") for name in bank.names}
        return Part(folder, adapters, bank.common, bank.shared.precision)
    if TENANTS in (read_task(folder) or {}):
        common, tenants = split(folder)
        return Part(folder, tenants, common)
    return Part(folder, {folder.absolute().name: read_contents(folder)})  # not the name of what a link leads to
