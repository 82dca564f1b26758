"""The commands of `lsr`, or `python -m lsr`: convert, quantize, compress, put many adapters into one file, serve it."""

import argparse
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NoReturn

from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from lsr.algebra.rounding import BITS, PRECISIONS
from lsr.convert.export import DTYPES, TOLERATED_LOSS, export_lora, export_merged, from_lora
from lsr.convert.smaller import compress_adapter, quantize_adapter
from lsr.convert.writing import COMMON, GRAPHS, check_output, replace_folder
from lsr.loading.adapters import load_adapter, outputs
from lsr.loading.base_models import class_of, load_model, load_tokenizer
from lsr.serve.file import FILE
from lsr.serve.http import command as server
from lsr.serve.joining import join_banks
from lsr.tuner.files import adapter_folder, previous_run, read_config, weights_of
from lsr.tuner.mistakes import InputError, NoBaseError, escape

# Exit codes.
MISTAKE = 2
FAILED = 1
STOPPED = 130
MODULE = "python -m lsr"
SCRIPT = "lsr"
ONNX = "onnx"
MORE_THAN_ROUNDING = 0.1  # of the largest output: bfloat16 changes a hundredth


def _export(options: Namespace) -> None:
    if options.to == ONNX:
        _export_graphs(options)
        return
    # A LoRA does not need the base model: without it, the outputs are not compared.
    sources = [options.adapter]
    if options.base:
        sources.append(Path(options.base))
    check_output(options.output, sources, replace=options.force)
    model = None
    why = "the model reads no token ids"
    try:
        model = load_adapter(options.adapter, options.base)
    except NoBaseError as error:
        if options.base or options.to != "lora":
            raise
        why = f"without its base model: {error}"
    expected = None if model is None else outputs(model)
    with replace_folder(options.output) as new:  # which is there when it has been compared
        new.rmdir()
        lines = _write_export(options, new, model)
        if expected is None:
            lines.append(f"the outputs are not compared: {why}")
        else:
            lines += _compare_outputs(options, new, expected)
    for line in lines:
        say(line)


def _write_export(options: Namespace, folder: Path, model: PeftModel | None) -> list[str]:
    # Write an export; lines with what was written.
    lines = []
    dtype = DTYPES[options.dtype]
    if model is None or options.to == "lora":
        lost = export_lora(model or options.adapter, folder, dtype=dtype, force=options.force)
    else:
        tokenizer = load_tokenizer(read_config(options.adapter), options.adapter, options.base)
        lost = export_merged(model, folder, dtype=dtype, tokenizer=tokenizer, force=options.force)
        if tokenizer is None:
            lines.append("no tokenizer beside the adapter or its base model: add its files before serving")
    lines.append(f"{options.output}: {options.to}, {len(lost.layers)} layers, {options.dtype}, {_size(folder)}")
    lines.append(f"rounding error of the update in {options.dtype}: {lost}")
    return lines


def _export_graphs(options: Namespace) -> None:
    if options.dtype != "float32":
        raise InputError(f"--dtype {options.dtype} has no effect with --to {ONNX}, which writes float32 and int8")
    from lsr.convert.graph import export_graphs  # it traces models, which no other command needs

    differences = export_graphs(options.adapter, options.output, base=options.base, force=options.force)
    say(f"{options.output}: graphs in float32 and int8")
    for path in sorted((options.output / GRAPHS).iterdir()):
        say(f"{GRAPHS}/{path.name}: {path.stat().st_size:,} bytes")
    say(f"float32: logits differ from torch by {differences.logits:.2g} at most")
    int8 = f"int8: logits differ from torch by {differences.quantized_logits:.2g} at most"
    if differences.quantized_probability is not None:
        int8 += f", probabilities by {differences.quantized_probability:.2g}"
    say(int8)


def _compare_outputs(options: Namespace, folder: Path, expected: Tensor) -> list[str]:
    # Lines with the largest difference of an export's outputs from the adapter's, for each way to load it.
    if options.to == "merged":
        kind = class_of(read_config(options.adapter))
        written = {"merged": outputs(load_model(kind, str(folder)).eval())}
    else:
        model = load_adapter(folder, options.base, "LORA")
        written = {"lora, unmerged": outputs(model), "lora, merged by PEFT": outputs(model.merge_and_unload())}
    largest = float(expected.abs().max())
    lines = [f"the largest output for seeded token ids is {largest:.3g}"]
    for name, logits in written.items():
        assert logits is not None  # as of the adapter
        difference = float((logits - expected).abs().max())
        lines.append(f"{name}: differs by {difference:.2g} at most")
        if not difference <= MORE_THAN_ROUNDING * largest:  # it may be nan
            lines.append(
                "this is no rounding, so do not use it so; a weight that two layers share, such as that of a tied "
                "head, cannot be merged for one of them"
            )
    return lines


def say(line: str) -> None:
    """Print a line, which may quote what a stranger has written."""
    print(escape(line))


def _import(options: Namespace) -> None:
    config = from_lora(options.lora, options.output, force=options.force)
    say(f"{options.output}: LSR with rank_shape {list(config.rank_shape)}, {_size(options.output)}")


def _quantize(options: Namespace) -> None:
    lost = quantize_adapter(options.adapter, options.output, options.to, force=options.force)
    say(f"{options.output}: {options.to}, {_sizes(options.adapter, options.output)}")
    say(f"rounding error of the tensors: {lost.tensors}")
    if lost.update is not None:
        say(f"rounding error of the update: {lost.update}")


def _compress(options: Namespace) -> None:
    folder = adapter_folder(options.adapter)
    lost = compress_adapter(folder, options.output, options.to, bits=options.bits, force=options.force)
    for name, error in lost.layers.items():
        say(f"{error:7.2%}  {name}")
    say(f"relative error of the update: {lost}")
    say(f"{options.output}: {_sizes(folder, options.output)}")


def _bank(options: Namespace) -> None:
    check_output(options.output, options.sources, replace=options.force)
    bank = join_banks(options.sources, options.base, options.precision)
    bank.save(options.output, force=options.force)
    size = (options.output / FILE).stat().st_size
    count = len(bank.names)
    adapters = "1 adapter" if count == 1 else f"{count} adapters"
    each = f"{size / count:,.0f} an adapter"
    say(f"{options.output}: {adapters} in {bank.shared.precision}, {size:,} bytes, {each}")
    if bank.common is not None:
        say(f"what they share: {_size(options.output / COMMON)}")


def _sizes(source: Path, output: Path) -> str:
    before = weights_of(source).stat().st_size
    after = weights_of(output).stat().st_size
    remark = "; this has made it larger" if after >= before else ""
    return f"tensors in {after:,} bytes, before in {before:,}{remark}"


def _size(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return f"{size:,} bytes"


ADAPTER = {"adapter": {"metavar": "ADAPTER", "type": Path, "help": "folder of an adapter"}}
OUTPUT = {"-o --output": {"metavar": "OUT", "type": Path, "required": True, "help": "the folder to write"}}
FORCE = {"--force": {"action": "store_true", "help": "replace OUT if it exists"}}
BASE = {"--base": {"metavar": "FOLDER_OR_HUB_ID", "help": "the base model, if not the one that the adapter names"}}
LOSSY = f"replace OUT if it exists, and let --dtype lose over {TOLERATED_LOSS:.0%}% of the update"
SEVERAL = {"nargs": "+", "type": Path, "required": True}
SOURCES = "adapters, with tenants or without, banks, or folders of them"
FORMS = "rank:R in each layer, directions:N in all, or shared:R between frames of all layers of a kind (rank:1)"
# By name: what it runs, what the list of commands and its own help say of it, and the options of its arguments by name.
COMMANDS: dict[str, tuple[Callable[[Namespace], None], str, str, dict[str, dict[str, Any]]]] = {
    "export": (
        _export,
        "write an adapter as plain LoRA, merged into its base model, or as a graph in ONNX",
        "Write an LSR adapter as a plain PEFT LoRA folder (exact, no SVD) or merged into its base model, or an adapter "
        "of any method with its base model as a graph in ONNX, in float32 and int8, which transformers.js and optimum "
        "read; and compare the outputs of what was written with those of the adapter.",
        {
            **ADAPTER,
            "--to": {"choices": ("lora", "merged", ONNX), "required": True, "help": "what to write"},
            **OUTPUT,
            "--force": {"action": "store_true", "help": LOSSY},
            "--dtype": {"choices": tuple(DTYPES), "default": "float32", "help": "of what is written (float32)"},
            **BASE,
        },
    ),
    "import": (
        _import,
        "write a plain LoRA as an LSR adapter",
        "Write a plain PEFT LoRA folder as an LSR adapter with the same tensors, bit for bit. It trains on as LoRA "
        "does, and export --to lora gives the LoRA back.",
        {"lora": {"metavar": "LORA", "type": Path, "help": "folder of a LoRA"}, **OUTPUT, **FORCE},
    ),
    "quantize": (
        _quantize,
        "write an adapter of any method in fewer bits",
        "Write an adapter of any method in bfloat16, or in 8, 4, 3 or 2 bits with a scale for each 64 entries. Every "
        "command takes such a folder; PEFT itself needs it back in float32. No base model is read.",
        {**ADAPTER, "--to": {"choices": PRECISIONS, "required": True, "help": "the precision"}, **OUTPUT, **FORCE},
    ),
    "compress": (
        _compress,
        "write an adapter as a small one",
        "Write an adapter of LSR or LoRA, in a folder or a hub repository, as the small LSR adapter that is nearest to "
        "it, and say how near. No base model is read. To train it on, name it in lsr.init of the pipeline.",
        {
            **ADAPTER,
            "--to": {"default": "rank:1", "metavar": "FORM", "help": FORMS},
            "--bits": {"type": int, "choices": tuple(BITS.values()), "help": "quantize it, as `quantize` does"},
            **OUTPUT,
            **FORCE,
        },
    ),
    "bank": (
        _bank,
        "write many adapters of one base model into one file",
        "Write adapters of one base model, of LSR or LoRA, into one file, bank.safetensors, from which lsr.AdapterBank "
        "serves them together: each row of a batch through its own. An adapter has its folder's name. An adapter of "
        "any method with tenants is one for each of them, and banks are joined; what tenants share must be the same.",
        {
            "--from": {**SEVERAL, "dest": "sources", "metavar": "FOLDER", "help": SOURCES},
            **OUTPUT,
            **FORCE,
            "--precision": {"choices": PRECISIONS, "help": "of what is stored (that of the banks, or float32)"},
            **BASE,
        },
    ),
    "serve": (
        server.run,
        "answer over HTTP with the adapters of a bank",
        "Serve a bank over HTTP, each text through the adapter that its request names; GET /openapi.json describes it. "
        "Who changes adapters shows the token in the environment variable LSR_TOKEN; without one nobody can.",
        server.ARGUMENTS,
    ),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(called: str = MODULE) -> Parser:
    """Return the parser of the whole command line; messages show its name."""
    top = Parser(
        prog=called, description="Export, import, quantize and compress adapters, put many into one file, serve it."
    )
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, summary, description, arguments) in COMMANDS.items():
        command = added.add_parser(name, help=summary, description=description)
        command.set_defaults(run=run)
        for flags, options in arguments.items():
            command.add_argument(*flags.split(), **options)
    return top


def script() -> int:
    """Run the command of the console script `lsr`; return the exit code."""
    return main(called=SCRIPT)


def main(arguments: Sequence[str] | None = None, called: str = MODULE) -> int:
    """Run a command; return the exit code."""
    options = parser(called).parse_args(arguments)
    # Leave out what PEFT and transformers say to those who train: a fresh head, progress bars, renamed attributes.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # that it tries again, when there is no connection
    warnings.simplefilter("ignore")
    for folder in _folders(options):
        note = previous_run(folder)
        if note:
            print(f"{folder}: {note}", file=sys.stderr)
    try:
        options.run(options)
    except InputError as error:
        return _report_failure(f"{called} {options.command}: {error}", MISTAKE)
    except KeyboardInterrupt:
        return _report_failure("stopped; nothing was half written", STOPPED)
    except OSError as error:
        return _report_failure(escape(f"{called} {options.command}: {error}"), FAILED)
    return 0


def _report_failure(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _folders(options: Namespace) -> list[Path]:
    # The folders of adapters and banks that a command reads.
    named = [*getattr(options, "sources", []), getattr(options, "adapter", None), getattr(options, "bank", None)]
    return [folder for folder in named if isinstance(folder, Path)]


if __name__ == "__main__":
    sys.exit(main())
