"""The commands `lsr export` and `lsr import`: each calls one function and prints its result.

Tables are plain aligned text, which needs no further package and reads the same in a terminal, a file or a pipe.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from lsr.convert.errors import Errors
from lsr.convert.export import DTYPES, export_lora, export_merged
from lsr.convert.from_lora import from_lora
from lsr.convert.parity import outputs, probe_ids
from lsr.convert.writing import check_output
from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import class_of, load_model, load_tokenizer
from lsr.loading.task_note import read_task
from lsr.tuner.files import TASK, read_config
from lsr.tuner.mistakes import InputError, NoBaseError

MORE_THAN_ROUNDING = 0.1  # of the largest output: bfloat16 changes a hundredth


def run_export(options: argparse.Namespace) -> None:
    """Write an export, load it back, and print how far its outputs are from the adapter's.

    A LoRA does not need the base model: without it, the outputs are not compared.

    Raises:
        InputError: if the adapter or the output folder is not usable.
        NoBaseError: if a base that is needed or named does not exist.
    """
    sources = (options.adapter, *([Path(options.base)] if options.base else []))
    check_output(options.output, sources, replace=options.force)
    try:
        model = load_adapter(options.adapter, options.base)
    except NoBaseError as error:
        if options.base or options.to != "lora":
            raise
        _show_export(options, _export(options, options.adapter))
        print(f"without its base model, the outputs are not compared: {error}")
        return
    ids = probe_ids(model)
    expected = None if ids is None else outputs(model, ids)
    _show_export(options, _export(options, model))
    if ids is None or expected is None:
        print("the model reads no token ids, so the outputs are not compared")
        return
    print(f"outputs for {len(ids)} x {ids.shape[1]} seeded token ids; the largest is {float(expected.abs().max()):.3g}")
    rows = differences(options, ids, expected)
    print(table(["format", "max |difference|"], [[name, f"{value:.2g}"] for name, value in rows]))
    for name, value in rows:
        if value > MORE_THAN_ROUNDING * float(expected.abs().max()):
            print(
                f"{name}: this is no rounding, so do not use it so; a weight that two layers share, such as that of a "
                "tied head, cannot be merged for one of them"
            )


def run_import(options: argparse.Namespace) -> None:
    """Write a LoRA as an LSR adapter, and print what was written."""
    config = from_lora(options.lora, options.output, force=options.force)
    print(f"{options.output}: LSR with rank_shape {list(config.rank_shape)}, {_size(options.output)}")


def _export(options: argparse.Namespace, adapter: PeftModel | Path) -> Errors:
    dtype = DTYPES[options.dtype]
    if options.to == "lora" or isinstance(adapter, Path):
        return export_lora(adapter, options.output, dtype=dtype, force=options.force)
    _name_labels(adapter, options.adapter)
    tokenizer = load_tokenizer(read_config(options.adapter), options.adapter, options.base)
    if tokenizer is None:
        print("no tokenizer beside the adapter or its base model: add its files before serving")
    return export_merged(adapter, options.output, dtype=dtype, tokenizer=tokenizer, force=options.force)


def _name_labels(model: PeftModel, folder: Path) -> None:
    """Set the names of the task's labels, if there are any, in the base model's configuration.

    Raises:
        InputError: unless there is one name per label, all different.
    """
    names, count = (read_task(folder) or {}).get("labels"), model.config.num_labels
    if names is None:
        return
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"{folder / TASK}: labels must be {count} different names, got {' '.join(names)}")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def _show_export(options: argparse.Namespace, lost: Errors) -> None:
    print(f"{options.output}: {options.to}, {len(lost.layers)} layers, {options.dtype}, {_size(options.output)}")
    print(f"rounding error of the update in {options.dtype}: {lost}")


def differences(options: argparse.Namespace, ids: Tensor, expected: Tensor) -> list[tuple[str, float]]:
    """Return, for each way to load the export, the largest difference of its outputs from the adapter's."""
    if options.to == "merged":
        kind = class_of(read_config(options.adapter))
        found = {"merged": outputs(load_model(kind, str(options.output)).float().eval(), ids)}
    else:
        model = load_adapter(options.output, options.base, "LORA")
        found = {"lora, unmerged": outputs(model, ids)}
        found["lora, merged by PEFT"] = outputs(model.merge_and_unload(), ids)
    return [(name, float((one - expected).abs().max())) for name, one in found.items()]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned lines: the first column to the left, the others to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()):,} bytes"
