"""The command line `lsr`, also `python -m lsr`: convert, quantize, compress and bank adapters, and serve banks."""

import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from lsr.algebra.rounding import BITS, PRECISIONS
from lsr.convert.compress import compress_adapter
from lsr.convert.export import DTYPES, TOLERATED_LOSS, export_lora, export_merged, from_lora
from lsr.convert.quantize import quantize_adapter
from lsr.convert.writing import GRAPHS, SHARED_ADAPTER, check_output, replace_folder
from lsr.errors import InputError, NoBaseError, escape
from lsr.loading.adapters import load_adapter, outputs
from lsr.loading.base_models import class_of, load_model, load_tokenizer
from lsr.loading.contents import read_contents, read_task
from lsr.loading.updates import LSR
from lsr.serve.additions import add_fitted, add_unlabeled
from lsr.serve.file import FILE
from lsr.serve.joining import join_banks
from lsr.serve.labeled import split_labels
from lsr.serve.tenant_runner import open_bank
from lsr.tuner.files import TASK, adapter_folder, read_config, weights_of
from lsr_onnx.notes import previous_run
from lsr_server import command as server

MODULE = "python -m lsr"
LORA_FORMAT = "lora"
ONNX = "onnx"
MORE_THAN_ROUNDING = 0.1  # fraction of the largest output; bfloat16 changes about 0.01 of it


def _export(options: Namespace) -> None:
    if options.rank is not None and options.to != LORA_FORMAT:
        raise InputError(f"--rank {options.rank} has no effect with --to {options.to}")
    if options.to == ONNX:
        _export_graphs(options)
        return
    # An LSR adapter is a LoRA without its base model, but then the outputs are not compared.
    needs_base = options.to != LORA_FORMAT or _is_decomposed(options)
    check_output(options.output, (options.adapter, options.base), replace=options.force)
    model = None
    why = "the model does not read token ids alone"
    try:
        model = load_adapter(options.adapter, options.base, None)
    except NoBaseError as error:
        if options.base or needs_base:
            raise
        why = f"without its base model: {error}"
    expected = None if model is None else outputs(model)
    with replace_folder(options.output) as new:  # the folder appears after the comparison
        new.rmdir()
        lines = _write_export(options, new, model)
        if expected is None:
            lines.append(f"the outputs are not compared: {why}")
        else:
            lines += _compare_outputs(options, new, expected)
    for line in (*lines, *_describe_thresholds(options.adapter)):
        say(line)


def _describe_thresholds(adapter: Path) -> Iterator[str]:
    # Lines about fields of task.json without which readers would choose other labels.
    task = read_task(adapter) or {}
    for field in ("threshold", "thresholds"):
        value = task.get(field)
        if value is not None:
            yield f"{TASK}: {field} {value}: transformers and PEFT do not read it; apply it to probabilities"


def _is_decomposed(options: Namespace) -> bool:
    # Whether a LoRA is found by merging the adapter, rather than in its tensors.
    return options.rank is not None or read_config(options.adapter)["peft_type"] != LSR


def _write_export(options: Namespace, folder: Path, model: PeftModel | None) -> list[str]:
    # Write an export; lines with what was written.
    lines = []
    dtype = DTYPES[options.dtype]
    if options.to == LORA_FORMAT and _is_decomposed(options):
        return _write_decomposed(options, folder, dtype)
    if model is None or options.to == LORA_FORMAT:
        errors = export_lora(model or options.adapter, folder, dtype=dtype, force=options.force)
    else:
        tokenizer = load_tokenizer(read_config(options.adapter), options.adapter, options.base)
        adapter = model if read_config(options.adapter)["peft_type"] == LSR else options.adapter
        errors = export_merged(
            adapter,
            folder,
            dtype=dtype,
            base=options.base,
            tokenizer=tokenizer,
            force=options.force,
        )
        if tokenizer is None:
            lines.append("no tokenizer in the folder of the adapter or of its base model: add its files before serving")
    lines.append(f"{options.output}: {options.to}, {len(errors.layers)} layers, {options.dtype}, {_size(folder)}")
    lines.append(f"rounding error of the update in {options.dtype}: {errors}")
    return lines


def _write_decomposed(options: Namespace, folder: Path, dtype: torch.dtype) -> list[str]:
    # Write the LoRA of a merged adapter; lines with its ranks and what it lacks.
    errors = export_lora(
        options.adapter,
        folder,
        dtype=dtype,
        base=options.base,
        rank=options.rank,
        force=options.force,
    )
    updates = read_contents(folder, with_biases=True).updates
    ranks = [len(update.bases.a) for update in updates.values()]
    lines = [f"{options.output}: LoRA of rank {min(ranks)} to {max(ranks)}, {len(ranks)} layers, {_size(folder)}"]
    if options.rank is not None:
        lines += [f"{error:9.3%}  {name}" for name, error in errors.layers.items()]
    return [*lines, f"relative error of the update: {errors}"]


def _export_graphs(options: Namespace) -> None:
    if options.dtype != "float32":
        raise InputError(f"--dtype {options.dtype} has no effect with --to {ONNX}, which writes float32 and int8")
    if (options.adapter / FILE).is_file():
        from lsr.serve.graph import export_bank_graphs  # it traces models, which no other command needs

        differences = export_bank_graphs(options.adapter, options.output, base=options.base, force=options.force)
    else:
        from lsr.convert.graph import export_graphs

        differences = export_graphs(options.adapter, options.output, base=options.base, force=options.force)
    say(f"{options.output}: graphs in float32 and int8")
    for path in sorted((options.output / GRAPHS).iterdir()):
        say(f"{GRAPHS}/{path.name}: {path.stat().st_size:,} bytes")
    say(f"float32: logits differ from torch by {differences.logits:.2g} at most")
    int8 = f"int8: logits differ from torch by {differences.quantized_logits:.2g} at most"
    if differences.quantized_probability is not None:
        int8 += f", probabilities by {differences.quantized_probability:.2g}"
    say(int8)
    for line in _describe_thresholds(options.adapter):
        say(line)


def _compare_outputs(options: Namespace, folder: Path, expected: Tensor) -> list[str]:
    # Lines with the largest difference of an export's outputs from the adapter's, for each way to load it.
    if options.to == "merged":
        model_class = class_of(read_config(options.adapter))
        written = {"merged": outputs(load_model(model_class, str(folder)).eval())}
    else:
        model = load_adapter(folder, options.base, "LORA")
        written = {"lora, unmerged": outputs(model), "lora, merged by PEFT": outputs(model.merge_and_unload())}
    largest = float(expected.abs().max())
    lines = [f"the largest output for seeded token ids is {largest:.3g}"]
    for name, logits in written.items():
        assert logits is not None  # the adapter had outputs, so the export has them, too
        difference = float((logits - expected).abs().max())
        lines.append(f"{name}: differs by {difference:.2g} at most")
        if options.rank is None and not difference <= MORE_THAN_ROUNDING * largest:  # it may be nan
            lines.append(
                "this is too large for rounding error: do not use this export; a weight that two layers share, such "
                "as a tied head, cannot be merged for one of them"
            )
    return lines


def say(line: str) -> None:
    """Print a line, which may quote untrusted text."""
    print(escape(line))


def _import(options: Namespace) -> None:
    config = from_lora(options.lora, options.output, force=options.force)
    say(f"{options.output}: LSR with rank_shape {list(config.rank_shape)}, {_size(options.output)}")


def _quantize(options: Namespace) -> None:
    errors = quantize_adapter(options.adapter, options.output, options.to, force=options.force)
    say(f"{options.output}: {options.to}, {_sizes(options.adapter, options.output)}")
    say(f"rounding error of the tensors: {errors.tensors}")
    if errors.update is not None:
        say(f"rounding error of the update: {errors.update}")


def _compress(options: Namespace) -> None:
    folder = adapter_folder(options.adapter)
    errors = compress_adapter(folder, options.output, options.to, bits=options.bits, force=options.force)
    for name, error in errors.layers.items():
        say(f"{error:7.2%}  {name}")
    say(f"relative error of the update: {errors}")
    say(f"{options.output}: {_sizes(folder, options.output)}")


def _bank(options: Namespace) -> None:
    check_output(options.output, options.sources, replace=options.force)
    files = _files_by_name(options.fit)
    if options.labels is not None and not (options.add or files):
        raise InputError("--labels: has no effect without --add or --fit")
    labels = None if options.labels is None else split_labels(options.labels, "--labels")
    bank = join_banks(options.sources, options.base, options.precision)
    if options.add:
        say(add_unlabeled(bank, options.add, labels))
    if files:
        for line in add_fitted(bank, files, options.sources[0], options.base, labels):
            say(line)
    bank.save(options.output, force=options.force)
    size = (options.output / FILE).stat().st_size
    count = len(bank.names)
    adapters = "1 adapter" if count == 1 else f"{count} adapters"
    each = f"{size / count:,.0f} per adapter"
    say(f"{options.output}: {adapters} in {bank.shared.precision}, {size:,} bytes, {each}")
    if bank.shared_adapter is not None:
        say(f"shared adapter: {_size(options.output / SHARED_ADAPTER)}")


def _files_by_name(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the files of `--fit NAME=FILE` by the names of tenants.

    Raises:
        InputError: if an argument has another form, or a name is given twice.
    """
    files = dict[str, Path]()
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise InputError(f"--fit: needed: NAME=FILE.csv, got {argument!r}")
        if name in files:
            raise InputError(f"--fit: {name}: given twice")
        files[name] = Path(path)
    return files


def _serve(options: Namespace) -> None:
    if options.runtime == server.TORCH:
        server.run(options, open_bank)
    else:
        server.serve_graphs(options)


def _sizes(source: Path, output: Path) -> str:
    before = weights_of(source).stat().st_size
    after = weights_of(output).stat().st_size
    remark = ", which is larger" if after >= before else ""
    return f"tensors: {before:,} to {after:,} bytes{remark}"


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return f"{size:,} bytes"


ADAPTER = {"adapter": {"metavar": "ADAPTER", "type": Path, "help": "folder of the adapter"}}
OUTPUT = {"-o --output": {"metavar": "OUT", "type": Path, "required": True, "help": "folder to write"}}
FORCE = {"--force": {"action": "store_true", "help": "overwrite OUT if it exists"}}
BASE = {"--base": {"metavar": "FOLDER_OR_HUB_ID", "help": "base model (default: the one that the adapter names)"}}
LOSSY = f"overwrite OUT if it exists, and accept a rounding error of over {TOLERATED_LOSS:.0%}% with --dtype"
# An option with several words that is given twice has the words of both.
LISTED = {"nargs": "+", "action": "extend"}
SEVERAL = {**LISTED, "type": Path, "required": True}
SOURCES = "folders of adapters, with or without tenants, of banks, or of folders of these"
FORMS = (
    "target form: rank:R per layer, directions:N in total, or shared:R, cores of R x R between bases that each layer "
    "group shares (default: %(default)s)"
)
DTYPE = "floating-point type of the output (default: %(default)s)"
BITS_HELP = "also quantize to this number of bits, like `lsr quantize` (default: no quantization)"
RANK_HELP = "maximum rank per layer of a LoRA (default: what the update needs, if that is low)"
PRECISION = "precision of the stored tensors (default: that of the input banks, or float32)"
ADD = "add tenants without any labeled text: each answers by the mean of the tenants with the same labels"
FIT = (
    "add or replace tenants with a few labeled texts, of a CSV file with the columns text and label: only the rows of "
    "their heads are fitted, in seconds; tenants for which that is not better answer as with --add"
)
OWN_LABELS = (
    "labels of the tenants of --add and --fit, separated by commas (default for --add: a number; for --fit: those in "
    "the file)"
)
# By name: what it runs, what the list of commands and its own help say of it, and the options of its arguments by name.
COMMANDS: dict[str, tuple[Callable[[Namespace], None], str, str, dict[str, dict[str, Any]]]] = {
    "export": (
        _export,
        "convert an adapter to plain LoRA, to a merged model or to ONNX",
        "Convert an adapter to a plain PEFT LoRA (LSR exactly, other PEFT methods by an SVD of each layer's update) or "
        "merge an adapter of any PEFT method into its base model, or write both as ONNX graphs in float32 and int8, "
        "for transformers.js and Optimum. The outputs of the result are compared with those of the adapter.",
        {
            **ADAPTER,
            "--to": {"choices": (LORA_FORMAT, "merged", ONNX), "required": True, "help": "output format"},
            **OUTPUT,
            "--force": {"action": "store_true", "help": LOSSY},
            "--dtype": {"choices": tuple(DTYPES), "default": "float32", "help": DTYPE},
            "--rank": {**server.COUNT, "help": RANK_HELP},
            **BASE,
        },
    ),
    "import": (
        _import,
        "convert a plain LoRA to an LSR adapter",
        "Convert a plain PEFT LoRA to an LSR adapter with the same tensors, bit for bit. It can be trained further as "
        "LoRA can, and `lsr export --to lora` gives the LoRA back.",
        {"lora": {"metavar": "LORA", "type": Path, "help": "folder of the LoRA"}, **OUTPUT, **FORCE},
    ),
    "quantize": (
        _quantize,
        "store an adapter in fewer bits",
        "Quantize an adapter of any PEFT method to bfloat16, or to 8, 4, 3 or 2 bits with one scale per group of about "
        "64 entries. All lsr commands read the result; for PEFT, convert it back with --to float32. The base model is "
        "not needed.",
        {**ADAPTER, "--to": {"choices": PRECISIONS, "required": True, "help": "target precision"}, **OUTPUT, **FORCE},
    ),
    "compress": (
        _compress,
        "approximate an adapter by a smaller one",
        "Compress an LSR or LoRA adapter (folder or Hub repository) into a small LSR adapter and print the relative "
        "error. The base model is not needed. To continue training, set lsr.init in params.yaml to the new folder.",
        {
            **ADAPTER,
            "--to": {"default": "rank:1", "metavar": "FORM", "help": FORMS},
            "--bits": {"type": int, "choices": tuple(BITS.values()), "help": BITS_HELP},
            **OUTPUT,
            **FORCE,
        },
    ),
    "bank": (
        _bank,
        "combine adapters of one base model in one file",
        "Combine LSR and LoRA adapters of one base model in a bank: one file from which lsr.AdapterBank and "
        "`lsr serve` apply a different adapter to each row of a batch. Adapters are named after their folders; a "
        "multi-tenant adapter of any PEFT method adds one entry per tenant, and banks are merged. All inputs must have "
        "the same shared adapter, or none.",
        {
            "--from": {**SEVERAL, "dest": "sources", "metavar": "FOLDER", "help": SOURCES},
            **OUTPUT,
            **FORCE,
            "--precision": {"choices": PRECISIONS, "help": PRECISION},
            "--add": {**LISTED, "default": [], "metavar": "NAME", "help": ADD},
            "--fit": {**LISTED, "default": [], "metavar": "NAME=FILE", "help": FIT},
            "--labels": {"metavar": "A,B", "help": OWN_LABELS},
            **BASE,
        },
    ),
    server.SERVE: (_serve, server.SUMMARY, server.DESCRIPTION, server.ARGUMENTS),
}


def parser(called: str = MODULE) -> ArgumentParser:
    """Return the parser of the whole command line; messages show its name."""
    top = server.Parser(
        prog=called,
        description="Export, import, quantize and compress adapters, and serve many adapters of one base model. "
        "`COMMAND --help` lists the options of a command.",
    )
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, summary, description, arguments) in COMMANDS.items():
        command = added.add_parser(name, help=summary, description=description)
        command.set_defaults(run=run)
        server.add_arguments(command, arguments)
    return top


def main(arguments: Sequence[str] | None = None, called: str = MODULE) -> int:
    """Run a command; return the exit code."""
    options = parser(called).parse_args(arguments)
    # Leave out what PEFT and transformers say to those who train: a fresh head, progress bars, renamed attributes.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # silences the hub's notes that it retries without a connection
    warnings.simplefilter("ignore")
    for folder in _folders(options):
        note = previous_run(folder)
        if note:
            print(f"{folder}: {note}", file=sys.stderr)
    return server.report(f"{called} {options.command}", partial(options.run, options))


def _folders(options: Namespace) -> list[Path]:
    # The folders of adapters and banks that a command reads.
    named = [*getattr(options, "sources", []), getattr(options, "adapter", None), getattr(options, "bank", None)]
    return [folder for folder in named if isinstance(folder, Path)]


if __name__ == "__main__":
    sys.exit(main())
