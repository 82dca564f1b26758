"""The command that makes a bank of folders of adapters."""

import argparse
from collections import Counter
from pathlib import Path

from lsr.convert.writing import check_output
from lsr.loading.base_models import load_base
from lsr.loading.files import read_config, read_tensors
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE, read
from lsr.tuner.saved import CONFIG


def _folders(source: Path) -> list[Path]:
    """Return an adapter's folder, or those of the adapters directly inside it."""
    inside = [path.parent for path in sorted(source.glob(f"*/{CONFIG}"))]
    return inside if inside and not (source / CONFIG).exists() else [source]


def run_bank(options: argparse.Namespace) -> None:
    """Write a bank for `python -m lsr bank`, each adapter named after its folder, and print its contents."""
    check_output(options.output, tuple(options.sources), replace=options.force)
    folders = [folder for source in options.sources for folder in _folders(source)]
    base = load_base(read_config(folders[0]), read_tensors(folders[0]), options.base)
    bank = AdapterBank(base, precision=options.precision)
    for folder in folders:
        bank.add(folder.resolve().name, folder)
    bank.save(options.output, force=options.force)
    written, sizes = (options.output / FILE).stat().st_size, Counter[str]()
    print(f"{options.output}: {len(bank)} adapter{'s' * (len(bank) != 1)} in {options.precision}, {written:,} bytes")
    for key, tensor in read(options.output)[1].items():
        sizes[key.partition("/")[0]] += tensor.nbytes
    for kind, size in sizes.items():
        print(f"{kind}: {size:,} bytes, {size / len(bank):,.0f} an adapter")
