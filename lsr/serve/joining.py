"""Join adapters, adapters with tenants, and banks of one base model into one bank."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lsr.errors import InputError
from lsr.loading.base_models import load_base, locate, tokenizer_in
from lsr.loading.contents import Contents, read_contents, read_task
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.serve.shared_adapter import base_with, fingerprint, split
from lsr.tuner.files import CONFIG, Files, tokenizer_files
from lsr_onnx.task import TENANTS

PROBE = "A text: naïve, 東京 and 1,234."  # text on which two tokenizers are compared


class Part(NamedTuple):
    """The adapters in a folder."""

    adapters: dict[str, Contents]  # adapters by name
    shared_adapter: Files | None = None  # the adapter that they share
    precision: str | None = None  # precision, if the source is a bank
    groups: Mapping[str, Contents] = {}  # entries of groups of tenants, if the source is a bank


def join_banks(
    sources: Sequence[Path],
    base: str | None = None,
    precision: str | None = None,
) -> AdapterBank:
    """Combine the adapters and banks in several folders into one bank on `base`, or on the first one's base model.

    A source is an adapter, named after its folder, a multi-tenant adapter, a bank, or a folder of these. The default
    precision is that of the banks, or float32. Of entries for the same group of tenants, the first one is kept.

    Raises:
        InputError: as `AdapterBank.add` and `AdapterBank.of_tenants`; if the shared adapters differ; if banks differ in
            precision and none is given; if an adapter's folder has another tokenizer than the base model.
    """
    folders = [folder for source in sources for folder in _folders(source)]
    parts = list[Part]()
    shared = set[str | None]()  # fingerprints of shared adapters
    for folder in folders:
        part = _part(folder, base)
        parts.append(part)
        shared.add(fingerprint(part.shared_adapter))
        if len(shared) > 1:
            raise InputError(f"{folder}: its adapters do not share the shared one of those in {folders[0]}")
    precisions = sorted({part.precision for part in parts if part.precision})
    if precision is None and len(precisions) > 1:
        raise InputError(f"banks in {' and '.join(precisions)}: choose a precision with --precision")
    contents = [own for part in parts for own in part.adapters.values()]
    if not contents:
        raise InputError(f"{folders[0]}: a bank without adapters")
    first = contents[0]
    shared_adapter = parts[0].shared_adapter
    model = load_base(first.base, first.heads, base) if shared_adapter is None else base_with(shared_adapter, base)
    _check_tokenizers(folders, tokenizer_in(*locate(first.base, base)))
    bank = AdapterBank(model, precision=precision or next(iter(precisions), "float32"))
    bank.shared_adapter = shared_adapter
    for part in parts:
        bank.add_all(part.adapters)
        new_groups = {name: contents for name, contents in part.groups.items() if name not in bank.groups}
        bank.add_groups(new_groups)
    return bank


def _part(folder: Path, base: str | None) -> Part:
    if (folder / FILE).exists():
        bank = AdapterBank.load(base, folder)
        adapters = {name: replace(bank.contents(name), source=f"{folder}: {name}") for name in bank.names}
        groups = {name: bank.contents(name) for name in bank.groups}
        return Part(adapters, bank.shared_adapter, bank.shared.precision, groups)
    if TENANTS in (read_task(folder) or {}):
        shared_adapter, adapters = split(folder)
        return Part(adapters, shared_adapter)
    return Part(
        {folder.absolute().name: read_contents(folder, head_alone=True)}
    )  # the name of the link itself, not of its target


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
            problem = f"its tokenizer is not the base model's, which a bank uses for all adapters: {difference}"
            remedy = "to use the base model's, remove its tokenizer files"
            raise InputError(f"{folder}: {problem}; {remedy}")
        equal.add(files)


def _hash_of_tokenizer(folder: Path) -> str:
    """Return a hash of the tokenizer files in a folder, to load equal tokenizers of many adapters only once."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _difference(own: Any, of_base: Any) -> str:
    """Describe how a tokenizer differs from the base model's; empty if outputs are the same."""
    if own.get_vocab() != of_base.get_vocab():
        return "it has another vocabulary"
    if own(PROBE)["input_ids"] != of_base(PROBE)["input_ids"]:
        return "it makes other tokens of a text"
    padding = own.pad_token or own.eos_token
    usual = of_base.pad_token or of_base.eos_token
    return "" if padding == usual else f"it pads with {padding}, not {usual}"


def _folders(source: Path) -> list[Path]:
    """Return the folders of adapters and banks in a folder, or the folder itself if there are none."""
    if _is_saved(source):
        return [source]
    return [folder for folder in sorted(source.glob("*")) if _is_saved(folder)] or [source]


def _is_saved(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / FILE).exists()
