"""Join adapters, adapters with tenants, and banks of one base model into one bank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lsr.loading.base_models import load_base
from lsr.loading.contents import TENANTS, Contents, read_contents, read_task
from lsr.serve.bank import AdapterBank
from lsr.serve.common import base_with, fingerprint, split
from lsr.serve.file import FILE
from lsr.tuner.files import CONFIG, Files
from lsr.tuner.mistakes import InputError


def joined(sources: Sequence[Path], base: str | None = None, precision: str | None = None) -> AdapterBank:
    """Return a bank of all adapters in some folders, on the base model that the first names, or on `base`.

    A source is an adapter, named after its folder, an adapter with tenants, a bank, or a folder of these. The precision
    is that of the banks, or float32.

    Raises:
        InputError: as `AdapterBank.add` and `AdapterBank.of_tenants`; if not all share the same adapter, or none; if
            banks differ in precision and none is given.
    """
    folders = [folder for source in sources for folder in _folders(source)]
    parts, precisions, shared = list[Mapping[str, Contents]](), set[str](), dict[str | None, Files | None]()
    for folder in folders:
        if (folder / FILE).exists():
            bank = AdapterBank.load(base, folder)
            common, precisions = bank.common, precisions | {bank.shared.precision}
            its = {name: replace(bank.contents(name), source=f"{folder}: {name}") for name in bank.names}
        elif TENANTS in (read_task(folder) or {}):
            common, its = split(folder)
        else:
            common, its = None, {folder.absolute().name: read_contents(folder)}  # not the name of what a link leads to
        parts.append(its)
        shared.setdefault(fingerprint(common), common)
        if len(shared) > 1:
            raise InputError(f"{folder}: its adapters do not share the common one of those in {folders[0]}")
    if precision is None and len(precisions) > 1:
        raise InputError(f"banks in {' and '.join(sorted(precisions))}: choose a precision with --precision")
    first, (common,) = next((its for part in parts for its in part.values()), None), shared.values()
    if first is None:
        raise InputError(f"{folders[0]}: a bank without adapters")
    model = load_base(first.base, first.heads, base) if common is None else base_with(common, base)
    bank = AdapterBank(model, precision=precision or next(iter(precisions), "float32"))
    bank.common = common
    for adapters in parts:
        bank.add_all(adapters)
    return bank


def _folders(source: Path) -> list[Path]:
    found = [one for one in (source, *sorted(source.glob("*"))) if (one / CONFIG).exists() or (one / FILE).exists()]
    return [source] if not found or found[0] == source else found
