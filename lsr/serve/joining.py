"""Join adapters, adapters with tenants, and banks of one base model into one bank."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lsr.loading.base_models import load_base
from lsr.loading.contents import Contents, read_contents
from lsr.serve.bank import AdapterBank
from lsr.serve.common import fingerprint, is_shared, split
from lsr.serve.file import FILE
from lsr.tuner.files import CONFIG, PREFIX, Files
from lsr.tuner.mistakes import InputError


class Part(NamedTuple):
    """What a folder adds to a bank."""

    folder: Path
    adapters: Mapping[str, Contents]  # by name
    common: Files | None = None  # what they share
    precision: str | None = None  # of a bank


def joined(sources: Sequence[Path], base: str | None = None, precision: str | None = None) -> AdapterBank:
    """Return a bank of all adapters in some folders, on the base model that the first names, or on `base`.

    A source is an adapter, named after its folder, an adapter with tenants, a bank, or a folder of these. Where one has
    tenants that share an adapter, all must, and the same. The precision is that of the banks, or float32.

    Raises:
        InputError: as `AdapterBank.add` and `AdapterBank.of_tenants`; if two have the same name, or do not share the
            same adapter; if banks differ in precision and none is given.
    """
    parts = [_read(folder, base) for folder in _folders(sources)]
    first, common = parts[0], parts[0].common
    for part in parts[1:]:
        if (part.common and fingerprint(part.common)) != (common and fingerprint(common)):
            raise InputError(f"{part.folder}: its adapters do not share the same common one as those of {first.folder}")
    if precision is None:
        known = sorted({part.precision for part in parts if part.precision is not None})
        if len(known) > 1:
            raise InputError(f"banks in {' and '.join(known)}: choose a precision with --precision")
        precision = known[0] if known else "float32"
    if common is not None:
        bank = AdapterBank.on(common, base, precision=precision)
    else:
        one = next(iter(first.adapters.values()))
        head = {f"{PREFIX}{key}": value for key, value in one.heads.items()}
        bank = AdapterBank(load_base(one.base, head, base), precision=precision)
    for part in parts:
        bank.add_all(part.adapters)
    return bank


def _folders(sources: Iterable[Path]) -> list[Path]:
    found = list[Path]()
    for source in sources:
        inside = sorted({path.parent for name in (CONFIG, FILE) for path in source.glob(f"*/{name}")})
        is_one = (source / CONFIG).exists() or (source / FILE).exists()
        found += inside if inside and not is_one else [source]
    return found


def _read(folder: Path, base: str | None) -> Part:
    if (folder / FILE).exists():
        bank = AdapterBank.load(base, folder)
        adapters = {name: replace(bank.contents(name), source=f"{folder}: {name}") for name in bank.names}
        return Part(folder, adapters, bank.common, bank.shared.precision)
    if is_shared(folder):
        common, tenants = split(folder)
        return Part(folder, tenants, common)
    return Part(folder, {folder.absolute().name: read_contents(folder)})  # not the name of what a link leads to
