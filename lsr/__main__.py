"""`python -m lsr`: export, inspect, compress and prune adapters, from the command line.

Tables are plain aligned text: it needs no further package, and reads the same in a terminal, a file or a pipe.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from transformers.utils import logging

from lsr.algebra.precision import ROUNDOFF, TOLERATED_LOSS, dtype_name
from lsr.convert.certificate import Certificate
from lsr.convert.compress import compress_lora
from lsr.convert.export import DTYPES, export_lora, export_merged
from lsr.convert.files import InputError, check_output
from lsr.convert.inspect import AdapterReport, LayerReport, inspect_adapter, shared_prefix
from lsr.convert.loading import load_adapter, load_lora, load_plain, load_tokenizer, name_labels
from lsr.convert.parity import largest_difference, outputs, probe_ids
from lsr.convert.prune import prune_adapter

MISTAKE = 2  # exit code


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(prog="python -m lsr", description="Export, inspect, compress and prune LSR adapters.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_inspect(commands)
    _add_compress(commands)
    _add_prune(commands)
    return top


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write an adapter as plain LoRA, or merged into its base model",
        description="Write an LSR adapter as a plain PEFT LoRA folder (exact, no SVD) or merged into its base model, "
        "and compare the outputs of what was written with those of the adapter.",
    )
    _add_adapter(command, "ADAPTER", "folder of an LSR adapter")
    command.add_argument("--to", choices=("lora", "merged"), required=True, help="what to write")
    _add_output(command, f"replace OUT if it exists, and let --dtype lose over {TOLERATED_LOSS:.0%}% of the update")
    command.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of what is written (float32)")
    _add_base(command)
    command.add_argument(
        "--labels", nargs="+", metavar="NAME", help="with --to merged: names of the labels, for the config.json"
    )
    command.set_defaults(run=run_export)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect",
        help="show what an adapter holds, layer by layer",
        description="Show sizes, condition numbers, size and singular values of the update, and the LoRA that equals "
        "it, layer by layer. The base model is read if it is there.",
    )
    _add_adapter(command, "ADAPTER", "folder of an LSR adapter")
    _add_base(command)
    command.add_argument("--json", action="store_true", help="print JSON, with all singular values")
    command.set_defaults(run=run_inspect)


def _add_compress(commands: Any) -> None:
    command = commands.add_parser(
        "compress",
        help="write an existing LoRA as an LSR adapter",
        description="Write an existing PEFT LoRA as an LSR adapter: the nearest one found, with its exact distance.",
    )
    _add_adapter(command, "LORA_ADAPTER", "folder of a LoRA adapter")
    _add_output(command)
    _add_terms(command)
    command.add_argument(
        "--rank-shape", nargs="+", type=int, metavar="R", help="ranks of the factors; without it each layer's own rank"
    )
    command.set_defaults(run=run_compress)


def _add_prune(commands: Any) -> None:
    command = commands.add_parser(
        "prune",
        help="write an LSR adapter with fewer terms",
        description="Write a trained LSR adapter with fewer Kronecker terms: the nearest one found, with its exact "
        "distance.",
    )
    _add_adapter(command, "ADAPTER", "folder of an LSR adapter")
    _add_output(command)
    _add_terms(command)
    _add_base(command)
    command.set_defaults(run=run_prune)


def _add_terms(command: argparse.ArgumentParser) -> None:
    command.add_argument("--separation-rank", type=int, metavar="S", help="terms; with --error, the most")
    command.add_argument(
        "--error", type=float, metavar="E", help="fewest terms in each layer that leave a relative error of at most E"
    )


def _add_adapter(command: argparse.ArgumentParser, name: str, text: str) -> None:
    command.add_argument("adapter", metavar=name, type=Path, help=text)


def _add_output(command: argparse.ArgumentParser, force: str = "replace OUT if it exists") -> None:
    command.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the folder to write")
    command.add_argument("--force", action="store_true", help=force)


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names"
    )


def run_export(options: argparse.Namespace) -> None:
    """Write, load what was written, and print how far its outputs are from those of the adapter.

    Raises:
        InputError: if the options do not go together, or the adapter, its base or the output folder is not usable.
    """
    sources = (options.adapter, *([Path(options.base)] if options.base else []))
    check_output(options.output, sources, replace=options.force)
    if options.labels and options.to != "merged":
        raise InputError("--labels: an adapter folder has no place for names of labels; only with --to merged")
    model = load_adapter(options.adapter, options.base)
    if options.labels:
        name_labels(model, options.labels)
    ids = probe_ids(model)
    expected = outputs(model, ids)
    dtype = DTYPES[options.dtype]
    if options.to == "lora":
        rounding = export_lora(model, options.output, dtype=dtype, force=options.force)
    else:
        tokenizer = load_tokenizer(options.adapter, options.base)
        rounding = export_merged(model, options.output, dtype=dtype, tokenizer=tokenizer, force=options.force)
        if tokenizer is None:
            print("no tokenizer beside the adapter or its base model: add its files for a server")
    print(f"{options.output}: {options.to}, {len(rounding.layers)} layers, {options.dtype}, {_size(options.output)}")
    worst = rounding.worst
    print(
        f"error of the update by {options.dtype}: {rounding.total:.2g} in total, "
        f"{rounding.layers[worst]:.2g} at most, in {worst}"
    )
    print(f"outputs for {len(ids)} x {ids.shape[1]} seeded token ids; the largest is {float(expected.abs().max()):.3g}")
    rows = differences(options, ids, expected)
    print(table(["format", "max |difference|"], [[name, f"{value:.2g}"] for name, value in rows]))


COLUMNS = (
    *("layer", "out x in", "rank", "terms", "trained", "stored", "effective"),
    *("κ(A)", "κ(B)", "κ(ΔW)", "‖ΔW‖/‖W‖", "singular values", "LoRA"),
)
SINGULAR_VALUES = 4  # in the table


def run_inspect(options: argparse.Namespace) -> None:
    """Print the report of an adapter."""
    report = inspect_adapter(options.adapter, options.base)
    if options.json:
        print(json.dumps(asdict(report), indent=2, sort_keys=True))
        return
    prefix = shared_prefix(report.layers)
    print(f"{options.adapter}: {len(report.layers)} layers of {prefix.rstrip('.') or 'the model'}, base {report.base}")
    print(table(COLUMNS, [_row(name.removeprefix(prefix), layer) for name, layer in report.layers.items()]))
    print(_totals(report))
    if report.base_problem is not None:
        print(f"without its base model, widths are what the factors span: {report.base_problem}")
    for dtype in map(dtype_name, ROUNDOFF):
        unfit = {name: layer.losses[dtype] for name, layer in report.layers.items() if dtype in layer.unfit_dtypes}
        if unfit:
            worst = max(unfit, key=lambda name: unfit[name])
            print(f"{dtype} would lose {unfit[worst]:.0%} of the update in {worst}: its terms cancel; keep float32")


def _row(name: str, layer: LayerReport) -> list[str]:
    relative = "" if layer.relative_norm is None else f"{layer.relative_norm:.2g}"
    leading = " ".join(f"{value:.2g}" for value in layer.singular_values[:SINGULAR_VALUES])
    return [
        *(name, f"{layer.out_features} x {layer.in_features}", f"{layer.rank}", f"{layer.separation_rank}"),
        *(f"{count:,}" for count in (layer.trained, layer.stored, layer.effective)),
        *(f"{value:.3g}" for value in (layer.condition_a, layer.condition_b, layer.condition_update)),
        *(relative, leading, f"r={layer.lora_rank}: {layer.lora_numbers:,}"),
    ]


def _totals(report: AdapterReport) -> str:
    sums = {
        name: sum(getattr(layer, name) for layer in report.layers.values())
        for name in ("trained", "stored", "effective", "lora_numbers")
    }
    return (
        f"together {sums['trained']:,} trained, {sums['stored']:,} stored, {sums['effective']:,} effective, "
        f"{sums['lora_numbers']:,} as LoRA; heads and biases {report.other_numbers:,}"
    )


def run_compress(options: argparse.Namespace) -> None:
    """Write a LoRA as LSR, and print the certificate."""
    certificate = compress_lora(
        options.adapter,
        options.output,
        separation_rank=options.separation_rank,
        error=options.error,
        rank_shape=None if options.rank_shape is None else tuple(options.rank_shape),
        force=options.force,
    )
    _show(options, certificate)


def run_prune(options: argparse.Namespace) -> None:
    """Write an adapter with fewer terms, and print the certificate."""
    certificate = prune_adapter(
        options.adapter,
        options.output,
        separation_rank=options.separation_rank,
        error=options.error,
        base=options.base,
        force=options.force,
    )
    _show(options, certificate)


def _show(options: argparse.Namespace, certificate: Certificate) -> None:
    layers = certificate.layers
    prefix = shared_prefix(layers)
    rows = [
        (name.removeprefix(prefix), f"{c.separation_rank}", f"{c.numbers_before:,}", f"{c.numbers:,}", f"{c.error:.4g}")
        for name, c in layers.items()
    ]
    before, after = (sum(getattr(c, name) for c in layers.values()) for name in ("numbers_before", "numbers"))
    rows.append(("together", "", f"{before:,}", f"{after:,}", f"{certificate.error:.4g}"))
    print(f"{options.output}: {len(layers)} layers of {prefix.rstrip('.') or 'the model'}, {_size(options.output)}")
    print(table(("layer", "terms", "numbers before", "after", "‖ΔW′ − ΔW‖/‖ΔW‖"), rows))
    if after >= before:
        print("no fewer numbers than before: allow a larger error, or fewer terms")


def differences(options: argparse.Namespace, ids: Tensor, expected: Tensor) -> list[tuple[str, float]]:
    """Return the largest difference to the adapter's outputs for each way to load what was written."""
    if options.to == "merged":
        found = outputs(load_plain(options.output, options.adapter), ids)
        return [(f"merged, {options.dtype}", largest_difference(found, expected))]
    model = load_lora(options.output, options.base)
    beside = largest_difference(outputs(model, ids), expected)
    merged = largest_difference(outputs(model.merge_and_unload(), ids), expected)
    return [
        (f"lora, {options.dtype}, beside its base", beside),
        (f"lora, {options.dtype}, merged by PEFT", merged),
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned lines: the first column to the left, numbers to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()):,} bytes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    options = parser().parse_args(arguments)
    _quiet()
    try:
        options.run(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"python -m lsr {options.command}: {error}", file=sys.stderr)
        return MISTAKE
    except BrokenPipeError:  # whoever reads has had enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _quiet() -> None:
    """Leave out what PEFT and transformers say to those who train: a fresh head, progress bars, renamed attributes."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # that it tries again, when there is no connection
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
