"""Write an adapter's folder, as LSR or LoRA, atomically and with reproducible bytes.

Both forms are exact, because LSR's A and B are LoRA factors: no SVD is computed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace as changed
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from lsr.errors import InputError, first_line, wrap_errors
from lsr.loading.contents import Contents
from lsr.loading.updates import LORA, LSR, Updates
from lsr.tuner.card import Card
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, PREFIX, ROUNDED, TASK, WEIGHTS, tokenizer_files
from lsr.tuner.forms import form_of
from lsr.tuner.injected import Resolved
from lsr.tuner.options import Fields, exact_patterns, usual_and_others
from lsr.tuner.packing import Tensors, pack, unpack
from lsr.tuner.sharing import layer_group_of
from lsr.tuner.targets import outer_names

LONG = 2  # dots in the name of a layer that no other layer's name ends in, as in transformers
BIASES = {"none": "none", "all": "all", "lsr_only": "lora_only"}
EXACT = "float32"  # the precision in which PEFT reads the file
# Endings of the files that a command writes: an adapter, a bank, or a checkpoint with its tokenizer.
ENDINGS = (".json", ".safetensors", ".md", ".txt", ".jinja", ".model")
SHARED_ADAPTER = "shared_adapter"  # the folder in a bank with the adapter that its tenants share
GRAPHS = "onnx"  # the folder with graphs, where transformers.js looks for them
FOLDERS = {
    SHARED_ADAPTER: ENDINGS,
    GRAPHS: (".onnx",),
}  # subfolders that a command writes, with the extensions of their files
MARKS = (CONFIG, "config.json", "bank.safetensors")  # files that identify a folder of ours: each has at least one


def write(
    contents: Contents,
    folder: Path,
    method: str = LSR,
    precision: str | None = None,
    *,
    with_tokenizer_of: Path | None = None,
    summary: str | None = None,
) -> None:
    """Write an adapter's folder, as LSR or LORA: its two files, its model card and its task.json.

    The tokenizer in the folder `with_tokenizer_of`, if there is one, is copied for inference. `summary` describes a
    LoRA in its model card. Tensors are written unchanged, or quantized to one of PRECISIONS (`lsr.tuner.packing`). An
    existing folder is replaced; `check_output` checks before whether it may be.

    Raises:
        InputError: if the method or the precision is unknown or cannot represent a value, or no layer is adapted.
    """
    if method not in (LSR, LORA):
        raise InputError(f"method must be {LSR} or {LORA}, got {method!r}")
    if not contents.updates:
        raise InputError(f"{contents.source}: is a head alone, which adapts no layer; needed for {method}: an update")
    as_files = _as_lsr if method == LSR else _as_lora
    fields, tensors = as_files(contents)
    tokenizer = [] if with_tokenizer_of is None else tokenizer_files(with_tokenizer_of)
    base = contents.base
    card = Card(
        base.get("base_model_name_or_path"),
        base.get("revision"),
        base.get("task_type"),
        contents.labels,
        is_multi_label=bool((contents.task or {}).get("thresholds")),
        has_tokenizer=bool(tokenizer),
    )
    if method == LORA:
        summary = summary or "It equals an LSR adapter, and loads without `lsr`."
        card = changed(card, method=LORA, module="peft", called="LoRA adapter", summary=summary)
    with replace_folder(folder) as new:
        write_files(new, contents.source, fields, tensors, precision)
        write_task(new, contents.task)
        copy_files(tokenizer, new)
        card.write(new)


def write_files(
    folder: Path,
    source: str,
    fields: Fields,
    tensors: Tensors,
    precision: str | None = None,
) -> None:
    """Write the two files of an adapter of any method into a folder; errors name `source`, its origin."""
    _write_json(fields, folder / CONFIG)
    with wrap_errors(source, ValueError, TypeError, AttributeError):
        stored = tensors if precision is None else pack(tensors, precision)
        if precision == EXACT:
            stored = unpack(stored)
    own = {name: stored[name].detach().cpu().clone().contiguous() for name in sorted(stored)}
    if precision in (None, EXACT):
        save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    else:
        save_file(own, folder / ROUNDED)


def write_task(folder: Path, task: Fields | None) -> None:
    """Write task.json, the task info, if there is one."""
    if task is not None:
        _write_json(task, folder / TASK)


def _write_json(fields: Fields, path: Path) -> None:
    text = json.dumps(dict(fields), indent=2, sort_keys=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def copy_files(paths: Sequence[Path], folder: Path) -> None:
    """Copy files into a folder, byte for byte."""
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def check_output(path: Path, sources: Iterable[str | Path | None], *, replace: bool) -> None:
    """Check that a folder may be written, before anything is computed; first restore it if a killed command moved it.

    Raises:
        InputError: if it is or contains a source; or if it exists, and `replace` is false or it contains other files
            than a command writes, so that no user's work is deleted.
    """
    target = path.resolve()
    for source in (*sources, Path.cwd()):
        if source is not None and Path(source).resolve().is_relative_to(target):
            raise InputError(f"{path}: would replace {source}, which is read; choose another folder")
    _recover(path)
    if path.exists() and not replace:
        raise InputError(f"{path}: exists; choose another folder, or replace it with --force")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: not a folder: not overwritten")
    files = sorted(path.glob("*"))
    if files and not any(file.name in MARKS for file in files):
        raise InputError(f"{path}: not a folder written by lsr: not overwritten")
    for file in files:
        if file.is_dir() and file.name in FOLDERS:
            for inner in sorted(file.iterdir()):
                _check_written(path, inner, FOLDERS[file.name])
        else:
            _check_written(path, file, ENDINGS)


def _check_written(path: Path, file: Path, endings: tuple[str, ...]) -> None:
    if file.suffix not in endings or not file.is_file():
        raise InputError(f"{path}: holds {file.name}, which lsr does not write: not overwritten")


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` on success; on an error nothing changes.

    Raises:
        InputError: if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = _locate_backup(path)
    try:
        _recover(path)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):  # safetensors makes them private, but a server may be another user
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)  # left by a command that was killed before it removed it
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written: {reason}") from None
    except InputError as error:
        raise type(error)(str(error).replace(str(temporary), str(path))) from None
    finally:
        _settle(path)
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(path: Path) -> None:
    """Leave one folder if its replacement ended between two steps, as at Ctrl-C: the new one, or else the old one."""
    with suppress(OSError):
        _recover(path)
    if path.exists():
        shutil.rmtree(_locate_backup(path), ignore_errors=True)


def _locate_backup(path: Path) -> Path:
    """Return the path to which a folder is moved while it is replaced."""
    return path.with_name(f".{path.name}.old")


def _recover(path: Path) -> None:
    """Move back a folder that a killed command had moved aside."""
    old = _locate_backup(path)
    if old.exists() and not path.exists():
        old.rename(path)


def _as_lora(contents: Contents) -> tuple[Fields, Tensors]:
    # Only fields that old versions of PEFT and other readers support are written.
    updates = {name: update.plain() for name, update in contents.updates.items()}
    tensors = {f"{PREFIX}{name}": value for name, value in contents.heads.items()}
    for name, update in updates.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.bases.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = update.bases.b
    return _fields_of_lora(contents, updates), tensors


def _fields_of_lora(contents: Contents, updates: Updates) -> dict[str, Any]:
    rank, ranks = _usual({name: len(update.bases.a) for name, update in updates.items()})
    alpha, alphas = _usual({name: update.alpha for name, update in updates.items()})
    base = contents.base
    return {
        **({} if base.get("task_type") else {"auto_mapping": base.get("auto_mapping")}),
        "peft_type": LORA,
        "task_type": base.get("task_type"),
        "base_model_name_or_path": base.get("base_model_name_or_path"),
        "revision": base.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": contents.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": _targets(contents),
        "modules_to_save": _list_full_modules(contents) or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "bias": BIASES[contents.bias],
        "fan_in_fan_out": contents.is_transposed,  # PEFT sets it where it is needed if there is no base model
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _list_full_modules(contents: Contents) -> list[str]:
    """Return the entries of modules_to_save that have tensors: PEFT adds the names of all common heads."""
    inside = set[str]()
    for name in contents.heads:
        module, _, _ = name.rpartition(".")
        inside.update(outer_names(module))
    whole = set[str]()
    for entry in contents.endings:
        if any(name.endswith(entry) for name in inside):
            whole.add(entry)
    return sorted(whole)


def _usual(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the most common value of layers, and others by patterns, which PEFT matches as regular expressions."""
    in_order = sorted(values.items(), key=itemgetter(1))  # ties go to the smallest value
    usual, others = usual_and_others(dict(in_order))
    pattern: dict[str, float] = {}
    for name, value in others.items():
        if any(other.endswith(f".{name}") for other in values):
            pattern |= exact_patterns({name: value})
        else:
            pattern[re.escape(name)] = value
    return usual, pattern


def _targets(contents: Contents) -> Sequence[str] | str:
    """Return full names, or one regular expression if other modules end in such a name: PEFT matches endings."""
    names = sorted(contents.updates)
    if contents.modules is None:  # without the base model, other layers might end in a short name
        modules = [f"a.{name}" for name in names if name.count(".") < LONG]
    else:
        modules = [name for name in contents.modules if name not in contents.updates]
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) for name in modules):
        return "|".join(map(re.escape, names))
    return names


def _as_lsr(contents: Contents) -> tuple[Fields, Tensors]:
    # It has cores if all of its updates have one of the same form. Layers of a group share their bases if this is so
    # in all groups.
    updates = dict(contents.updates)
    axes = {0 if update.core is None else update.core.dim() for update in updates.values()}
    if len(axes) > 1:
        updates = {name: update.plain() for name, update in updates.items()}
    layer_groups = {name: layer_group_of(name, update.form) for name, update in updates.items()}
    owners = {layer_group: name for name, layer_group in reversed(layer_groups.items())}  # the first layer of each
    bases = {update.bases for update in updates.values()}
    has_cores = 0 not in axes and len(axes) == 1
    is_shared = has_cores and len(bases) == len(owners) < len(updates)
    with wrap_errors(contents.source, ValueError, TypeError, AttributeError):
        config = _config(contents, updates, is_shared)
    tensors = {}
    for name, update in updates.items():
        adapter = f"{PREFIX}{name}.lsr_adapters."
        if not is_shared or owners[layer_groups[name]] == name:
            tensors[f"{adapter}factor_A1"] = update.bases.a[None]
            tensors[f"{adapter}factor_B1"] = update.bases.b[None]
        if update.core is not None:
            tensors[f"{adapter}core"] = update.core
    for name, value in contents.heads.items():
        tensors[f"{PREFIX}{name}"] = value
    return config.to_dict(), tensors


def _config(contents: Contents, updates: Updates, is_shared: bool) -> LsrConfig:
    first = next(iter(updates.values()))
    alpha, others = usual_and_others({name: update.alpha for name, update in updates.items()})
    is_diagonal = first.core is not None and first.core.dim() == 1
    config = LsrConfig(
        **contents.base,
        train="factors" if first.core is None else "core",
        core="diagonal" if is_diagonal else "full",
        modules_to_save=list(contents.endings) or None,
        rank_shape=(len(first.bases.a),),
        alpha=alpha,
        alpha_pattern=exact_patterns(others),
        share="layers" if is_shared else "none",
        dropout=contents.dropout,
        bias=contents.bias,
        inference_mode=True,
    ).with_ranks({name: len(update.bases.a) for name, update in updates.items()})
    forms = {}
    for name, update in updates.items():
        m, n = update.bases.shape
        forms[name] = form_of(config, name, n, m)
    # A list of targets would hold endings of names, which other layers might have too.
    targets = "|".join(map(re.escape, updates))
    return changed(config, target_modules=targets, resolved=Resolved.of(forms))
