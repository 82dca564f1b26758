"""Adapter folders on disk: read without running any code in them, written completely or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lsr.tuner.saved import CONFIG, WEIGHTS, first_line, read_fields, read_weights

PICKLES = ("adapter_model.bin", "adapter_model.pt")
PREFIX = "base_model.model."  # PEFT puts it before each tensor's name in the base model
# The name of a factor or core in the file: its layer, and its name in the adapter.
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lsr_adapters\.((?:factor|scale|start)_[AB]\d+|core)")
# The files that a command writes: an adapter, or a checkpoint with its tokenizer; `task.json` is the pipeline's.
WRITTEN = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|bank\.safetensors|task\.json|README\.md|"
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|"
    r"tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja|"
    r"vocab\.(txt|json)|merges\.txt|(spiece|sentencepiece\.bpe|tokenizer)\.model"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what a terminal interprets as a command or a line break
LONGEST_LINE = 276  # characters of a message, before a command's name is prepended
LONGEST_NAME = 200  # bytes: file systems allow 255, and the folder is first written under a longer name


class InputError(ValueError):
    """A mistake that the user can fix: one line that says where, what, and what is allowed.

    Its length is bounded, because it may quote a file that contains anything.
    """

    def __str__(self) -> str:
        line = CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().__str__().replace("\n", " "))
        half = (LONGEST_LINE - 3) // 2
        return line if len(line) <= LONGEST_LINE else f"{line[:half]}...{line[-half:]}"


class NoBaseError(InputError):
    """The base model does not exist or cannot be loaded."""


def read_config(folder: Path, method: str | None = None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration.

    Raises:
        InputError: if the folder is not an adapter, or not one of the PEFT method given.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; needed: a folder with {CONFIG} and {WEIGHTS}")
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder}: not an adapter folder, {CONFIG} is missing")
    try:
        fields = read_fields(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if method is not None and fields["peft_type"] != method:
        raise InputError(f"{folder}: an adapter of the method {fields['peft_type']}; needed: {method}")
    return fields


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return an adapter's tensors by their names in the file.

    Raises:
        InputError: if there is no safetensors file, it is cut off or corrupt, a tensor is empty or of a dtype that no
            adapter has, or a value is not finite.
    """
    path = folder / WEIGHTS
    if not path.exists():
        for name in PICKLES:
            if (folder / name).exists():
                raise InputError(
                    f"{folder / name}: a pickle, which can run any code when read, so it is not read; save the adapter "
                    f"as {WEIGHTS}"
                )
        raise InputError(f"{folder}: {WEIGHTS} is missing")
    try:
        return read_weights(path)
    except ValueError as error:
        raise InputError(str(error)) from None


def write_adapter(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the configuration and tensors into a folder, with the same bytes every time."""
    text = json.dumps(dict(fields), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    own = {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})


def check_output(path: Path, sources: tuple[Path, ...], *, replace: bool) -> None:
    """Check that a folder can be written, before anything is computed for it.

    Raises:
        InputError: if it exists and may not be replaced, is or contains a source, or its name is not allowed.
    """
    _check_name(path)
    target = path.resolve()
    for source in (*sources, Path.cwd()):
        if source.resolve().is_relative_to(target):
            raise InputError(f"{path}: would replace {source}, which is read; choose another folder")
    if not os.path.lexists(path):
        return
    if not replace:
        raise InputError(f"{path}: exists; choose another folder, or replace it with --force")
    check_replaceable(path)


def _check_name(path: Path) -> None:
    """Refuse a name that no file system accepts.

    Raises:
        InputError: says how long it may be.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: a name cannot hold a NUL character; choose another folder")
    if (length := max(map(len, map(os.fsencode, path.parts)), default=0)) > LONGEST_NAME:
        raise InputError(f"{path.name[:20]}...: a name of {length} bytes; at most {LONGEST_NAME} are allowed")


def check_replaceable(path: Path) -> None:
    """Check that an existing folder contains only files that a command writes, so that no other work is deleted.

    Raises:
        InputError: if it is not a folder, or contains anything else; names the first such entry.
    """
    if not path.is_dir() or path.is_symlink():
        raise InputError(f"{path}: not a folder, so it is not replaced")
    for file in sorted(path.iterdir()):
        if not WRITTEN.fullmatch(file.name) or file.is_symlink() or not file.is_file():
            raise InputError(
                f"{path}: holds {file.name}, which is not a file of an adapter or checkpoint, so it is not replaced"
            )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` if all goes well; otherwise nothing changes.

    Raises:
        InputError: if the folder cannot be written.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():  # safetensors makes them private, but a server may be another user
            file.chmod(temporary.stat().st_mode & 0o666)
        if os.path.lexists(path):
            check_replaceable(path)  # again: since the first check, somebody may have put a file there
            path.rename(old)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        raise InputError(
            f"{path}: cannot be written: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from None
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
