"""The commands of `lsr`, or `python -m lsr`: export, import, round and squeeze adapters, put many into one file."""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, NoReturn

from transformers.utils import logging

from lsr.algebra.rounding import PRECISIONS
from lsr.convert.commands import run_export, run_import
from lsr.convert.export import DTYPES, TOLERATED_LOSS
from lsr.convert.rounded import run_round
from lsr.convert.squeezed import BITS, run_squeeze
from lsr.convert.writing import check_output
from lsr.loading.base_models import load_base
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE, read
from lsr.tuner.files import CONFIG, read_config, read_tensors
from lsr.tuner.mistakes import InputError

MISTAKE, FAILED, STOPPED = 2, 1, 130  # exit codes
MODULE, SCRIPT = "python -m lsr", "lsr"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(called: str = MODULE) -> Parser:
    """Return the parser of the whole command line, which messages call so."""
    top = Parser(
        prog=called,
        description="Export, import, round and squeeze adapters, and put many into one file.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_import(commands)
    _add_round(commands)
    _add_squeeze(commands)
    _add_bank(commands)
    return top


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write an adapter as plain LoRA, or merged into its base model",
        description="Write an LSR adapter as a plain PEFT LoRA folder (exact, no SVD) or merged into its base model, "
        "and compare the outputs of what was written with those of the adapter.",
    )
    _add_adapter(command)
    command.add_argument("--to", choices=("lora", "merged"), required=True, help="what to write")
    _add_output(command, f"replace OUT if it exists, and let --dtype lose over {TOLERATED_LOSS:.0%}% of the update")
    command.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of what is written (float32)")
    _add_base(command)
    command.set_defaults(run=run_export)


def _add_import(commands: Any) -> None:
    command = commands.add_parser(
        "import",
        help="write a plain LoRA as an LSR adapter",
        description="Write a plain PEFT LoRA folder as an LSR adapter with the same tensors, bit for bit. It trains on "
        "as LoRA does, and export --to lora gives the LoRA back.",
    )
    command.add_argument("lora", metavar="LORA", type=Path, help="folder of a LoRA")
    _add_output(command)
    command.set_defaults(run=run_import)


def _add_round(commands: Any) -> None:
    command = commands.add_parser(
        "round",
        help="write an adapter of any method in fewer bits",
        description="Write an adapter of any method in bfloat16, or in 8, 4, 3 or 2 bits with a scale for each "
        "64 entries. Every command takes such a folder; PEFT itself needs it back in float32. No base model is "
        "read.",
    )
    _add_adapter(command, "an adapter of any method")
    command.add_argument("--to", choices=PRECISIONS, required=True, help="the precision of what is written")
    _add_output(command)
    command.set_defaults(run=run_round)


def _add_squeeze(commands: Any) -> None:
    command = commands.add_parser(
        "squeeze",
        help="write an adapter as a small one",
        description="Write an adapter of LSR or LoRA as the small LSR adapter that is nearest to it, and say how near. "
        "No base model is read. To train it on, name it in lsr.init of the pipeline.",
    )
    _add_adapter(command, "an adapter of LSR or LoRA, or its hub repository")
    command.add_argument(
        "--to",
        default="rank:1",
        metavar="FORM",
        help="rank:R in each layer, directions:N in all layers, or shared:R between frames of all layers of a kind "
        "(rank:1)",
    )
    command.add_argument("--bits", type=int, choices=tuple(BITS), help="round it, as `round` does")
    _add_output(command)
    command.set_defaults(run=run_squeeze)


def _add_bank(commands: Any) -> None:
    command = commands.add_parser(
        "bank",
        help="write many adapters of one base model into one file",
        description="Write adapters of one base model, of LSR or LoRA, into one file, bank.safetensors, from which "
        "lsr.AdapterBank serves them together: each row of a batch through its own. An adapter has its folder's name.",
    )
    command.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folders of adapters, or folders that hold such",
    )
    _add_output(command)
    command.add_argument("--precision", choices=PRECISIONS, default="float32", help="of what is stored (float32)")
    _add_base(command)
    command.set_defaults(run=run_bank)


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank, each adapter named after its folder, and print its contents."""
    check_output(options.output, tuple(options.sources), replace=options.force)
    folders = [folder for source in options.sources for folder in _folders(source)]
    base = load_base(read_config(folders[0]), read_tensors(folders[0]), options.base)
    bank = AdapterBank(base, precision=options.precision)
    for folder in folders:
        bank.add(folder.absolute().name, folder)  # not the name of what a link leads to
    bank.save(options.output, force=options.force)
    written, sizes, count = (options.output / FILE).stat().st_size, Counter[str](), len(bank.names)
    print(f"{options.output}: {count} adapter{'s' * (count != 1)} in {options.precision}, {written:,} bytes")
    for key, tensor in read(options.output)[1].items():
        sizes[key.partition("/")[0]] += tensor.nbytes
    for kind, size in sizes.items():
        print(f"{kind}: {size:,} bytes, {size / count:,.0f} an adapter")


def _folders(source: Path) -> list[Path]:
    """Return an adapter's folder, or those of the adapters directly inside it."""
    inside = [path.parent for path in sorted(source.glob(f"*/{CONFIG}"))]
    return inside if inside and not (source / CONFIG).exists() else [source]


def _add_adapter(command: argparse.ArgumentParser, kind: str = "an LSR adapter") -> None:
    command.add_argument("adapter", metavar="ADAPTER", type=Path, help=f"folder of {kind}")


def _add_output(command: argparse.ArgumentParser, force: str = "replace OUT if it exists") -> None:
    command.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the folder to write")
    command.add_argument("--force", action="store_true", help=force)


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names"
    )


def script() -> int:
    """Run the command of the console script `lsr`; return the exit code."""
    return main(called=SCRIPT)


def main(arguments: Sequence[str] | None = None, called: str = MODULE) -> int:
    """Run a command; return the exit code."""
    options = parser(called).parse_args(arguments)
    _quiet()
    try:
        options.run(options)
    except InputError as error:
        code, line = MISTAKE, f"{called} {options.command}: {error}"
    except KeyboardInterrupt:
        code, line = STOPPED, "stopped; nothing was half written"
    except OSError as error:
        code, line = FAILED, f"{called} {options.command}: {error}"
    else:
        return 0
    print(line, file=sys.stderr)
    return code


def _quiet() -> None:
    """Leave out what PEFT and transformers say to those who train: a fresh head, progress bars, renamed attributes."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(ERROR)  # that it tries again, when there is no connection
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
