"""Quantize the tensors of adapters of any PEFT method."""

from pathlib import Path
from typing import NamedTuple

from lsr.convert.relative_errors import Norms, RelativeErrors, errors_of, norms_of, relative
from lsr.convert.writing import check_output, copy_files, replace_folder, write_files, write_task
from lsr.errors import InputError
from lsr.loading.contents import read_task
from lsr.loading.updates import LSR, updates_in
from lsr.tuner.files import Files, read_files, tokenizer_files


class QuantizationErrors(NamedTuple):
    """The relative errors of quantization."""

    tensors: RelativeErrors  # relative errors by name of the tensor
    update: RelativeErrors | None  # relative errors by layer; None for methods other than LSR and plain LoRA


def quantize_adapter(
    folder: str | Path,
    output: str | Path,
    precision: str,
    *,
    force: bool = False,
) -> QuantizationErrors:
    """Write an adapter of any PEFT method in float32, bfloat16, 8bit, 4bit, 3bit or 2bit.

    In float32, PEFT can load the folder. In other precisions the tensors are in a file with the layout of
    `lsr.tuner.packing`, which all functions and commands of this package accept.

    Raises:
        InputError: if the folder is not an adapter, the precision is unknown, or `output` exists and `force` is false.
    """
    folder = Path(folder)
    output = Path(output)
    check_output(output, (folder,), replace=force)
    files = read_files(folder)
    exact = {name: tensor.double() for name, tensor in files.tensors.items() if tensor.is_floating_point()}
    if not exact:
        raise InputError(f"{folder}: there is no floating-point tensor to quantize")
    with replace_folder(output) as new:
        write_files(new, str(folder), files.fields, files.tensors, precision)
        write_task(new, read_task(folder))
        copy_files(tokenizer_files(folder), new)
        written = read_files(new)
        norms = dict[str, Norms]()
        for name, tensor in exact.items():
            norms[name] = norms_of(written.tensors[name] - tensor, tensor)
        of_tensors = relative(norms)
        of_update = _errors_of_updates(written, files)
        return QuantizationErrors(of_tensors, of_update)


def _errors_of_updates(written: Files, exact: Files) -> RelativeErrors | None:
    try:
        return errors_of(updates_in(written), updates_in(exact))
    except InputError:
        if exact.method == LSR:
            raise
        return None  # other methods may do more than add an update
