"""What the adapter of a tenant may be, measured on several: python -m benchmarks.tenants data/tenants.

The folder has NAME.train.tsv and NAME.test.tsv, with the columns label and text, for each tenant. Every way to train
has the same tries, three learning rates with the first seed, of which the mean accuracy on held-out texts chooses one.
A training that is done is not repeated. Records, in the arena's format, and figures go to benchmarks/results.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding
from transformers.utils import logging

from benchmarks import figures
from benchmarks.tenants.training import EPOCHS, HEAD_RATE, RATE, Shop, Trained, base_after, lora, own
from benchmarks.tenants.ways import FORMS, HEAD, LIKE, NEEDS, ON_TOP, TOGETHER, WAYS, Form
from examples.tenants import BASE, ROWS, Rows, Tenant, answered, read
from lsr import AdapterBank, squeeze_adapter
from lsr.algebra.rounding import pack
from lsr.loading.base_models import locate
from lsr.tuner.files import read_tensors
from pipeline.arena import machine, record
from pipeline.compare import bootstrap
from pipeline.compare.comparison import RESAMPLES
from pipeline.compare.estimates import PERCENT, estimate
from pipeline.compare.leads import Scores
from pipeline.compare.verdicts import Judge
from pipeline.core import artifacts
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error

PATH = figures.FOLDER / "tenants.json"
RECORDS = figures.FOLDER / "tenants.jsonl"
CACHE = Path(".cache/tenants")
TEXTS, MAX_LENGTH = 260, 64  # of a tenant, with those held out; tokens
SEEDS, FACTORS = (0, 1, 2), (0.3, 1.0, 3.0)
BASELINE, AVERAGE, MARGIN = "own LoRA r = 8, as trained", "tenants", 1.0  # percentage points
Values = NDArray[Any]
PROGRAM = "python -m benchmarks.tenants"


class Row(NamedTuple):
    """A form of adapters of all tenants. Scores are mean accuracies in percent, bytes those of a file."""

    form: str
    passes: int  # over a tenant's texts
    factor: float  # of the learning rate
    score: float | None
    score_low: float | None  # 95 % interval over seeds
    score_high: float | None
    difference: float | None  # from BASELINE
    difference_low: float | None  # 95 % interval over tenants, seeds and test texts
    difference_high: float | None
    verdict: str | None
    bytes: float  # of a tenant, with its head
    shared_bytes: int
    seconds: float  # of the processor, for a tenant, with what the way begins with


class Pace(NamedTuple):
    """The same adapters trained one by one and side by side."""

    order: str
    seconds: float  # of the processor, for all tenants
    held_out: float  # mean accuracy in percent


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and publish.

    Raises:
        SystemExit: with code 2 after a mistake, 130 after Ctrl-C.
    """
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("folder", type=Path)
    figures.add_threads(parser, 2)
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with exit_on_error("stopped; what is trained is kept", PROGRAM, before=f"{PROGRAM}: "):
        figures.use_threads(options.threads)
        name, revision = locate({"base_model_name_or_path": BASE}, None)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        load = partial(AutoModelForSequenceClassification.from_pretrained, name, revision=revision, num_labels=2)
        tenants = read(_table(options.folder, "train", TEXTS), tokenizer, MAX_LENGTH)
        tested = read(_table(options.folder, "test", None), tokenizer, MAX_LENGTH)
        tests = {name: [*one.train, *one.held_out] for name, one in tested.items()}
        shop = Shop(load, tenants, DataCollatorWithPadding(tokenizer), CACHE / _digest(tenants))
        RECORDS.unlink(missing_ok=True)
        figures.publish(PATH, "tenants", options.threads, measured(shop, tests))
        figures.publish(PATH, "side by side", options.threads, paces(shop))


def _table(folder: Path, split: str, most: int | None) -> pd.DataFrame:
    files = sorted(folder.glob(f"*.{split}.tsv"))
    if not files:
        raise UserError(f"{folder}: no NAME.{split}.tsv")
    texts = [pd.read_csv(file, sep="\t", quoting=3, encoding_errors="replace", dtype=str)[:most] for file in files]
    return pd.concat([its.assign(tenant=file.name.partition(".")[0]) for file, its in zip(files, texts, strict=True)])


def _digest(tenants: Mapping[str, Tenant]) -> str:
    """Return a hash of what all trainings depend on: other texts or settings are trained anew."""
    known = json.dumps([BASE, EPOCHS, RATE, HEAD_RATE, tenants])
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def measured(shop: Shop, tests: Mapping[str, Rows]) -> Iterator[Row]:
    """Yield the row of each form."""
    done: dict[int, dict[str, Trained]] = {seed: {} for seed in SEEDS}
    factors = dict[str, float]()
    for way in WAYS:
        factors[way] = factors[LIKE[way]] if way in LIKE else _tuned(shop, way, done[SEEDS[0]])
        for seed in SEEDS:
            done[seed][way] = _trained(shop, way, factors[way], seed, done[seed])
    labels = {name: np.array([row["label"] for row in rows]) for name, rows in tests.items()}
    said = {form: {seed: predicted(shop, form, done[seed], tests) for seed in SEEDS} for form in FORMS}
    verdicts = judge(said, labels).against(BASELINE, AVERAGE, [form.name for form in FORMS])
    for form, by_seed in said.items():
        for seed, its in by_seed.items():
            for name in tests:
                keep(form, factors[form.way], seed, name, done[seed], its[name], labels[name])
        every, verdict = [parts(form, done[SEEDS[0]], name) for name in tests], verdicts[form.name]
        means = [
            PERCENT * fmean(float((its[name] == labels[name]).mean()) for name in tests) for its in by_seed.values()
        ]
        yield Row(
            *(form.name, form.passes, factors[form.way], *estimate(means)),
            *(verdict.difference, verdict.difference_low, verdict.difference_high, verdict.verdict),
            *(fmean(size(its, form.precision) for its, _ in every), size(every[0][1], form.precision)),
            fmean(seconds_of(form, done[seed]) for seed in SEEDS),
        )


def _tuned(shop: Shop, way: str, done: Mapping[str, Trained]) -> float:
    """Return the factor of the rate with the best mean accuracy on held-out texts; a head's rate is not tuned."""
    tried = {factor: _trained(shop, way, factor, SEEDS[0], done) for factor in (FACTORS if way != HEAD else (1.0,))}
    return max(tried, key=lambda factor: fmean(tried[factor].held_out.values()))


def _trained(shop: Shop, way: str, factor: float, seed: int, done: Mapping[str, Trained]) -> Trained:
    return kept(shop.folder / way / f"{factor}-{seed}", lambda folder: WAYS[way](shop, folder, factor, seed, done))


def kept(folder: Path, train: Callable[[Path], Trained]) -> Trained:
    """Return the result of a training, which is not repeated if it has been done."""
    path = folder / "trained.json"
    if not path.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        trained = train(folder)
        with artifacts.replacing(path) as temporary:
            temporary.write_text(json.dumps(trained._asdict()), encoding="utf-8")
    return Trained(**json.loads(path.read_text(encoding="utf-8")))


def predicted(shop: Shop, form: Form, done: Mapping[str, Trained], tests: Mapping[str, Rows]) -> dict[str, Values]:
    """Return the labels that the adapters of a form find for the tenants' test texts, (texts,) each."""
    bank = AdapterBank(base_after(shop, done[TOGETHER] if form.way == ON_TOP else None), precision=form.precision)
    for name in tests:
        bank.add(name, stored(form, done, name))
    return {name: np.array([*answered(bank, name, rows, shop.collate)]) for name, rows in tests.items()}


def stored(form: Form, done: Mapping[str, Trained], name: str) -> Path:
    """Return the folder of a tenant's adapter, before it is rounded."""
    folder = done[form.way].of(name)
    if form.squeezed is None:
        return folder
    small = folder.with_name(f"{name}-{form.squeezed.replace(':', '-')}")
    if not small.is_dir():
        squeeze_adapter(folder, small, form.squeezed)
    return small


def parts(form: Form, done: Mapping[str, Trained], name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that a tenant has of its own, and those that all tenants share."""
    tensors = read_tensors(stored(form, done, name))
    shared = {key: value for key, value in tensors.items() if form.shared and form.shared in key}
    own_ones = {key: value for key, value in tensors.items() if key not in shared}
    if form.way == ON_TOP:
        shared = {key: value for key, value in read_tensors(done[TOGETHER].of(name)).items() if ".lora_" in key}
    return own_ones, {} if form.way == HEAD else shared  # its LoRA is zero


def size(tensors: Mapping[str, Tensor], precision: str) -> int:
    """Return the bytes of a file that holds these tensors; 0 if there are none."""
    return len(save(pack(tensors, precision))) if tensors else 0


def seconds_of(form: Form, done: Mapping[str, Trained]) -> float:
    """Return the processor time that a tenant takes, with that of the way that its own begins with."""
    ways = [form.way, *([NEEDS[form.way]] if form.way in NEEDS else [])]
    return sum(done[way].seconds for way in ways) / len(done[form.way].held_out)


def judge(said: Mapping[Form, Mapping[int, Mapping[str, Values]]], labels: Mapping[str, Values]) -> Judge:
    """Return what compares the forms, over tenants, seeds and test texts."""
    scores: dict[str, dict[str, dict[int, Scores]]] = {}
    for name, right in labels.items():
        every = [its[name] for by_seed in said.values() for its in by_seed.values()]
        resampled = iter(bootstrap.scores(name, "accuracy", right, every, RESAMPLES))
        scores[name] = {
            form.name: {
                seed: Scores(PERCENT * float((its[name] == right).mean()), PERCENT * next(resampled))
                for seed, its in by_seed.items()
            }
            for form, by_seed in said.items()
        }
    return Judge(scores, {AVERAGE: tuple(labels)}, MARGIN)


def keep(
    form: Form, factor: float, seed: int, name: str, done: Mapping[str, Trained], found: Values, right: Values
) -> None:
    """Add a tenant's scores to the records."""
    own_ones, shared = parts(form, done, name)
    heads = sum(value.numel() for key, value in own_ones.items() if ".classifier." in key)
    trained = sum(value.numel() for value in own_ones.values()) - heads
    setting: dict[str, Any] = {
        "texts": TEXTS,
        "max_length": MAX_LENGTH,
        "passes": form.passes,
        "precision": form.precision,
    }
    known = json.dumps([name, form, factor, seed, setting])
    record.append(
        RECORDS,
        record.Record(
            key=hashlib.sha256(known.encode()).hexdigest()[:16],
            preset=AVERAGE,
            task=name,
            method=form.name,
            adapter="lsr" if form.squeezed or form.shared == ".factor_" else "lora",
            overrides={"seed": seed, **setting},
            reads={"train": TEXTS},
            rate=RATE * factor,
            head_rate=HEAD_RATE,
            seed=seed,
            status="finished",
            reason="",
            metrics=("accuracy",),
            validation=(done[form.way].held_out[name],),
            test=({"accuracy": float((found == right).mean())},),
            loss=(),
            predicted=tuple(map(float, found)),
            trained=trained,
            stored=trained + sum(value.numel() for value in shared.values()),
            head=heads,
            file_bytes=size(own_ones, form.precision),
            seconds={"train": round(seconds_of(form, done), 2)},
            peak_bytes=None,
            made=machine.made(),
        ),
    )


def paces(shop: Shop) -> Iterator[Pace]:
    """Yield what LoRA r = 1 takes with all tenants side by side, and with each on its own."""
    alone = [shop._replace(tenants={name: tenant}) for name, tenant in shop.tenants.items()]
    for order, shops in (("side by side", [shop]), ("one by one", alone)):
        rows = ROWS // len(shops)
        found = [
            kept(shop.folder / order / str(at), partial(own, one, config=lora(1), factor=1.0, seed=0, size=rows))
            for at, one in enumerate(shops)
        ]
        scores = [score for one in found for score in one.held_out.values()]
        yield Pace(order, sum(one.seconds for one in found), PERCENT * fmean(scores))


if __name__ == "__main__":
    main()
