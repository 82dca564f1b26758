"""Read and write a bank's file: the rows of all adapters in row pools, the bases of cores, and a header.

It is a safetensors file. Its tensors are `layers/MODULE/POOL/values` and `.../counts`, likewise those of `heads`, and
`bases/MODULE/a` and `b`, once for all layers that share them. Its header has a single entry of metadata, HEADER, JSON:

    checksum       SHA-256 of the file up to the first tensor, with BLANK in place of this checksum
    checksums      by tensor: SHA-256 of its bytes
    base           the base model according to the adapters' configurations
    precision      of the row pools
    task_infos     by adapter or group of tenants, in the order of their slots: the contents of its task.json
    layers         the modules of the base model that are adapted
    heads          those that are trained in full
    bases         by layer with cores: the layer after which its bases are named, and the entries of a core
    shared_adapter by file of the folder of the adapter that all tenants share: its SHA-256; null without one

Checksums detect a change of any byte, but not an attacker who recomputes them. Therefore all contents are checked as if
there were no checksums.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import SHARED_ADAPTER, replace_folder, write_files
from lsr.errors import InputError, wrap_errors
from lsr.loading.base_models import format_shape
from lsr.loading.contents import BASE_FIELDS
from lsr.loading.updates import Bases
from lsr.serve.admission import check_group
from lsr.serve.row_pool import StoredPool
from lsr.serve.shared_adapter import bytes_of
from lsr.tuner.files import CONFIG, WEIGHTS, Files, parse_json, read_files, read_weights
from lsr.tuner.packing import Tensors
from lsr_onnx.folder import DEEPEST
from lsr_onnx.names import check_name, is_reserved
from lsr_onnx.task import are_names, validate_task_info

FILE = "bank.safetensors"
HEADERS = "lsr_bank_"  # prefix of the header's key, before the version
HEADER = f"{HEADERS}9"
# The first parts of the names of tensors:
LAYERS = "layers"
HEADS = "heads"
BASES = "bases"
BLANK = "0" * 64
DIGEST = re.compile("[0-9a-f]{64}")
IN_HEADER = 2  # objects around the task info of an adapter
OF_LENGTH = 8  # bytes before the header of a safetensors file, which hold its length
REMEDY = "write the bank again from its adapters"

TaskInfos = dict[str, dict[str, Any]]
BasesOfLayers = dict[str, tuple[Bases, int]]  # bases by layer, with the number of entries of a core between them


@dataclass(frozen=True)
class BankFile:
    """The contents of a bank's file and of the folder next to it, checked except for what needs the base model."""

    base: dict[str, Any]  # the base model according to the adapters' configurations
    precision: str
    task_infos: TaskInfos  # contents of task.json by adapter or group, in the order of their slots
    layers: list[str]
    heads: list[str]
    bases: BasesOfLayers  # bases of the layers that have cores
    pools: dict[str, StoredPool]  # row pools by name: layers/MODULE/POOL or heads/MODULE/POOL
    shared_adapter: Files | None  # the adapter that all tenants share


def read(folder: Path) -> BankFile:
    """Return the contents of a bank's file with memory-mapped tensors.

    Raises:
        InputError: as `read_weights`; if the file is not a bank, is damaged or of another version.
    """
    path = folder / FILE
    tensors = read_weights(path)
    header = _parse_header(path)
    with wrap_errors(path, ValueError):
        _check_tensors(header["checksums"], tensors)
        bases = _bases(header["bases"], header["layers"], tensors)
        pools = _pools(tensors)
        task_infos = _read_task_infos(header["task_infos"])
    return BankFile(
        base=header["base"],
        precision=header["precision"],
        task_infos=task_infos,
        layers=header["layers"],
        heads=header["heads"],
        bases=bases,
        pools=pools,
        shared_adapter=_read_shared_adapter(folder / SHARED_ADAPTER, header["shared_adapter"]),
    )


def write(contents: BankFile, folder: Path) -> None:
    """Write a bank's file and the subfolder of its shared adapter; an existing folder is replaced.

    Raises:
        InputError: as `lsr.convert.writing`.
    """
    owners = dict[Bases, str]()  # the first layer of each
    for layer, (bases, _) in contents.bases.items():
        owners.setdefault(bases, layer)
    tensors = _tensors(contents, owners)
    with replace_folder(folder) as new:
        shared_adapter = contents.shared_adapter
        if shared_adapter is not None:
            (new / SHARED_ADAPTER).mkdir()
            write_files(new / SHARED_ADAPTER, str(folder), shared_adapter.fields, shared_adapter.tensors)
        header = {
            "checksum": BLANK,
            "checksums": {name: _digest(tensor) for name, tensor in tensors.items()},
            "base": contents.base,
            "precision": contents.precision,
            "task_infos": contents.task_infos,
            "layers": contents.layers,
            "heads": contents.heads,
            "bases": {layer: (owners[bases], size) for layer, (bases, size) in contents.bases.items()},
            "shared_adapter": None if shared_adapter is None else _digests_in(new / SHARED_ADAPTER),
        }
        metadata = {HEADER: json.dumps(header)}
        save_file(tensors, new / FILE, metadata=metadata)
        _seal(new / FILE)


def _tensors(contents: BankFile, owners: Mapping[Bases, str]) -> dict[str, Tensor]:
    """Return the tensors of a bank's file, by name; bases are named after the layer that owns them."""
    tensors = dict[str, Tensor]()
    for name, pool in contents.pools.items():
        tensors[f"{name}/values"] = pool.values
        tensors[f"{name}/counts"] = pool.counts
    for bases, owner in owners.items():
        tensors[f"{BASES}/{owner}/a"] = bases.a.contiguous()
        tensors[f"{BASES}/{owner}/b"] = bases.b.contiguous()
    return tensors


def _seal(path: Path) -> None:
    # Replace BLANK by the checksum of the header. It is the first entry of the metadata, which is the first of all.
    with path.open("r+b") as file:
        header = _header_bytes(file)
        file.seek(header.index(BLANK.encode()))
        file.write(hashlib.sha256(header).hexdigest().encode())


def _header_bytes(file: BinaryIO) -> bytes:
    length = file.read(OF_LENGTH)
    return length + file.read(int.from_bytes(length, "little"))


def _parse_header(path: Path) -> dict[str, Any]:
    """Return the header of a file that safetensors can read.

    Raises:
        InputError: if it is not the header of a bank of this version, a field is missing or of another type, or its
            checksum is wrong.
    """
    with safe_open(path, framework="pt") as content:
        metadata = content.metadata() or {}
    if HEADER not in metadata:
        others = [name for name in metadata if name.startswith(HEADERS)]
        reason = f"{others[0]}, needed: {HEADER}; {REMEDY}" if others else "no bank"
        raise InputError(f"{path}: {reason}")
    header = parse_json(metadata[HEADER].encode(), path, DEEPEST + IN_HEADER)
    if not isinstance(header, dict):
        raise InputError(f"{path}: {HEADER} must be an object")
    for field, (fits, needed) in FIELDS.items():
        if field not in header or not fits(header[field]):
            raise InputError(f"{path}: {field} must be {needed}")
    with path.open("rb") as file:
        stored = _header_bytes(file)
    checksum = header["checksum"]
    blank = stored.replace(checksum.encode(), BLANK.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != checksum:
        raise InputError(f"{path}: damaged: its header has another checksum; {REMEDY}")
    return header


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def _check_tensors(checksums: Mapping[str, str], tensors: Tensors) -> None:
    for name in sorted(checksums.keys() ^ tensors.keys()):
        reason = "missing" if name in checksums else "a tensor without a checksum"
        raise ValueError(f"{name!r} is {reason}")
    for name, tensor in tensors.items():
        if _digest(tensor) != checksums[name]:
            raise ValueError(f"damaged: {name} has another checksum; {REMEDY}")


def _bases(
    entries: Mapping[str, tuple[str, int]],
    layers: list[str],
    tensors: Tensors,
) -> BasesOfLayers:
    """Return the bases and the number of core entries by layer; layers that share bases have the same object.

    Raises:
        ValueError: if bases are missing, or do not fit each other or the cores.
    """
    by_owner = dict[str, Bases]()
    for owner in {owner for owner, _ in entries.values()}:
        a = tensors.get(f"{BASES}/{owner}/a")
        b = tensors.get(f"{BASES}/{owner}/b")
        if a is None or b is None:
            raise ValueError(f"the bases of {owner!r} are missing")
        are_matrices = a.dim() == b.dim() == 2
        if not are_matrices or not 0 < len(a) == b.shape[1]:
            reason = f"{format_shape(a.shape)} and {format_shape(b.shape)}; needed: r x n and m x r"
            raise ValueError(f"the bases of {owner!r} are {reason}")
        by_owner[owner] = Bases(a=a, b=b)
    bases = BasesOfLayers()
    for layer, (owner, size) in entries.items():
        rank = len(by_owner[owner].a)
        if layer not in layers or size not in (rank, rank**2):
            raise ValueError(f"{layer!r} has cores of {size} entries between bases of rank {rank}")
        bases[layer] = by_owner[owner], size
    return bases


def _pools(tensors: Tensors) -> dict[str, StoredPool]:
    """Return the row pools of layers and heads by name.

    Raises:
        ValueError: if a part of a row pool is missing.
    """
    pools = dict[str, StoredPool]()
    for name in tensors:
        if name.startswith(f"{BASES}/"):
            continue
        pool, _, _ = name.rpartition("/")
        for part in StoredPool._fields:
            if f"{pool}/{part}" not in tensors:
                raise ValueError(f"'{pool}/{part}' is missing")
        values = tensors[f"{pool}/values"]
        counts = tensors[f"{pool}/counts"]
        pools[pool] = StoredPool(values, counts)
    return pools


def _read_task_infos(entries: Mapping[str, Any]) -> TaskInfos:
    """Return the task infos of adapters by name.

    Raises:
        ValueError: if a name or a task info is not allowed.
    """
    task_infos = TaskInfos()
    for name, task_info in entries.items():
        task_infos[name] = validate_task_info(task_info, name)
        if is_reserved(name):
            check_group(name, task_info)
        else:
            check_name(name)
    return task_infos


def _read_shared_adapter(folder: Path, digests: Mapping[str, str] | None) -> Files | None:
    """Return the adapter that all tenants share; None if the bank lists no checksums for it.

    Raises:
        InputError: as `read_files`, or if a checksum of its files is wrong.
    """
    if digests is None:
        return None
    files = read_files(folder)
    if _digests_in(folder) != digests:
        raise InputError(f"{folder}: not the adapter that the tenants of this bank share; {REMEDY}")
    return files


def _digests_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 by name of the files of an adapter that `write_files` wrote."""
    digests = dict[str, str]()
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_digest, value.values()))


def _are_different_names(value: Any) -> bool:
    return are_names(value) and len(set(value)) == len(value)


def _is_base(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not value.keys() <= {*BASE_FIELDS}:
        return False
    names = [name for field, name in value.items() if field != "auto_mapping"]
    return all(name is None or isinstance(name, str) for name in names)


def _are_bases(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_owner_and_size, value.values()))


def _is_owner_and_size(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return [type(part) for part in value] == [str, int]


# By field of the header: whether it may have a value, and what is needed.
FIELDS = {
    "checksum": (_is_digest, "a SHA-256"),
    "checksums": (_are_digests, "an object of SHA-256"),
    "base": (_is_base, f"an object of {', '.join(BASE_FIELDS)}"),
    "precision": (lambda value: isinstance(value, str), "a name"),
    "task_infos": (lambda value: isinstance(value, dict), "an object with the task info of each adapter"),
    "layers": (_are_different_names, "a list of different names"),
    "heads": (_are_different_names, "a list of different names"),
    "bases": (_are_bases, "an object with a name and a number for each layer"),
    "shared_adapter": (lambda value: value is None or _are_digests(value), "null or an object of SHA-256"),
}
