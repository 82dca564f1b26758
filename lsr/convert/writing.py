"""Write the folder of an adapter or a checkpoint: completely or not at all, with the same bytes every time."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lsr.algebra.rounding import pack, unpack
from lsr.convert.formats import as_lora, as_lsr
from lsr.loading.contents import Contents
from lsr.loading.updates import LORA, LSR
from lsr.tuner.card import Card
from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS
from lsr.tuner.mistakes import InputError, explained, first_line

FORMATS = {LSR: as_lsr, LORA: as_lora}
EXACT = "float32"  # the precision in which PEFT reads the file
# Of the files that a command writes: an adapter, a bank, or a checkpoint with its tokenizer.
ENDINGS = (".json", ".safetensors", ".md", ".txt", ".jinja", ".model")
COMMON = "common"  # the folder in a bank with the adapter that its tenants share
MARKS = (CONFIG, "config.json", "bank.safetensors")  # at least one of them is in each


def write(contents: Contents, folder: Path, method: str = LSR, precision: str | None = None) -> None:
    """Write an adapter's folder, as LSR or LORA: its two files, its card and the note about its task.

    Its tensors are as they are, or rounded to one of PRECISIONS (`lsr.algebra.rounding`). A folder that is there is
    replaced: `check_output` says whether it may be.

    Raises:
        InputError: if there is no such method, or LSR refuses a value.
    """
    if method not in FORMATS:
        raise InputError(f"method must be {' or '.join(FORMATS)}, got {method!r}")
    fields, tensors = FORMATS[method](contents)
    named = (contents.base.get(key) for key in ("base_model_name_or_path", "revision", "task_type"))
    card = Card(*named, contents.labels, is_several=bool((contents.task or {}).get("thresholds")))
    if method == LORA:
        summary = "It equals an LSR adapter, and loads without `lsr`."
        card = replaced(card, method=LORA, module="peft", called="LoRA adapter", summary=summary)
    with writing(folder) as new:
        write_files(new, contents.source, fields, tensors, precision)
        write_task(new, contents.task)
        card.write(new)


def write_files(
    folder: Path, source: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], precision: str | None = None
) -> None:
    """Write the two files of an adapter of any method into a folder.

    Raises:
        InputError: if there is no such precision, or it cannot hold the tensors; names `source`, where they come from.
    """
    text = json.dumps(dict(fields), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    with explained(source, ValueError, TypeError, AttributeError):
        stored = tensors if precision is None else pack(tensors, precision)
        stored = unpack(stored) if precision == EXACT else stored
    own = {name: stored[name].detach().cpu().clone().contiguous() for name in sorted(stored)}
    if precision in (None, EXACT):
        save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    else:
        save_file(own, folder / ROUNDED)


def write_task(folder: Path, task: Mapping[str, Any] | None) -> None:
    """Write the note about an adapter's task, such as the names of its labels, if there is one."""
    if task is not None:
        (folder / TASK).write_text(json.dumps(task, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_output(path: Path, sources: tuple[Path, ...], *, replace: bool) -> None:
    """Check that a folder may be written, before anything is computed.

    Raises:
        InputError: if it is or contains a source, or if it exists and `replace` is false or it holds anything else than
            what a command writes: nobody's work is deleted.
    """
    target = path.resolve()
    for source in (*sources, Path.cwd()):
        if source.resolve().is_relative_to(target):
            raise InputError(f"{path}: would replace {source}, which is read; choose another folder")
    if path.exists() and not replace:
        raise InputError(f"{path}: exists; choose another folder, or replace it with --force")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: not a folder, so it is not replaced")
    files = sorted(path.glob("*"))
    if files and not any(file.name in MARKS for file in files):
        raise InputError(f"{path}: no adapter, bank or checkpoint, so it is not replaced")
    for file in (*files, *path.glob(f"{COMMON}/*")):
        is_common = file.is_dir() and file == path / COMMON
        if not is_common and (file.suffix not in ENDINGS or not file.is_file()):
            raise InputError(f"{path}: holds {file.name}, which no adapter or checkpoint has, so it is not replaced")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` if all goes well; otherwise nothing changes.

    Raises:
        InputError: if the folder cannot be written.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):  # safetensors makes them private, but a server may be another user
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)
        if path.is_dir():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written: {reason}") from None
    except InputError as error:
        raise type(error)(str(error).replace(str(temporary), str(path))) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
