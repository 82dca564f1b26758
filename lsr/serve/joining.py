"""Join adapters, adapters with tenants, and banks of one base model into one bank."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsr.loading.base_models import load_base, locate, tokenizer_in
from lsr.loading.contents import Contents, read_contents, read_task
from lsr.loading.task import TENANTS
from lsr.serve.bank import AdapterBank
from lsr.serve.common import base_with, fingerprint, split
from lsr.serve.file import FILE
from lsr.tuner.files import CONFIG, Files, tokenizer_files
from lsr.tuner.mistakes import InputError

PROBE = "A text: naïve, 東京 and 1,234."  # of which two tokenizers make the same tokens, or not


def joined(sources: Sequence[Path], base: str | None = None, precision: str | None = None) -> AdapterBank:
    """Return a bank of all adapters in some folders, on the base model that the first names, or on `base`.

    A source is an adapter, named after its folder, an adapter with tenants, a bank, or a folder of these. The precision
    is that of the banks, or float32.

    Raises:
        InputError: as `AdapterBank.add` and `AdapterBank.of_tenants`; if not all share the same adapter, or none; if
            banks differ in precision and none is given; if an adapter's folder has another tokenizer than the base
            model.
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
    _check_tokenizers(folders, tokenizer_in(*locate(first.base, base)))
    bank = AdapterBank(model, precision=precision or next(iter(precisions), "float32"))
    bank.common = common
    for adapters in parts:
        bank.add_all(adapters)
    return bank


def _check_tokenizers(folders: Sequence[Path], of_base: Any) -> None:
    # A bank has one tokenizer for all, the base model's.
    if of_base is None:
        return
    equal = set[str]()  # hashes of files
    for folder in folders:
        files = _hash_of_tokenizer(folder)
        own = None if files in equal else tokenizer_in(str(folder), None)
        difference = "" if own is None else _difference(own, of_base)
        if difference:
            problem = f"its tokenizer is not the base model's, which a bank has for all: {difference}"
            remedy = "to ask the adapter with the base model's, remove its tokenizer files"
            raise InputError(f"{folder}: {problem}; {remedy}")
        equal.add(files)


def _hash_of_tokenizer(folder: Path) -> str:
    """Return a hash of the files of a tokenizer in a folder: many adapters of one base model have the same."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _difference(own: Any, of_base: Any) -> str:
    """Return how a tokenizer differs from the base model's; an empty text if in nothing that changes answers."""
    if own.get_vocab() != of_base.get_vocab():
        return "it has another vocabulary"
    if own(PROBE)["input_ids"] != of_base(PROBE)["input_ids"]:
        return "it makes other tokens of a text"
    padding, usual = (tokenizer.pad_token or tokenizer.eos_token for tokenizer in (own, of_base))
    return "" if padding == usual else f"it pads with {padding}, not {usual}"


def _folders(source: Path) -> list[Path]:
    found = [one for one in (source, *sorted(source.glob("*"))) if (one / CONFIG).exists() or (one / FILE).exists()]
    return [source] if not found or found[0] == source else found
