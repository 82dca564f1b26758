"""Run the missing training runs of cells in worker processes, after checking that all of them can run."""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Thread

from pipeline import params
from pipeline.arena import features, plan, record, task_tokens, tuning, unseen
from pipeline.arena.measure import build_plan, measure
from pipeline.arena.plan import Cell
from pipeline.arena.preset import PATH
from pipeline.arena.record import Record
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import base_models, content
from pipeline.data.content import Source
from pipeline.params import effects
from pipeline.params.reading import all_of
from pipeline.training import processes, run


def run_all(cells: Sequence[Cell], records: dict[str, Record], path: Path, jobs: int) -> None:
    """Run the missing training runs, and add their records to `records` and to the file.

    Raises:
        UserError: if one cannot run, before any does; or if a worker dies.
    """
    left = [cell for cell in cells if tuning.missing(cell, records)]
    if not left:
        return
    check(left)
    for cell in {cell.task: cell for cell in left}.values():
        task_tokens.write_labels(cell.first(), cell.labels)
    most = sum(tuning.most_left(cell, records) for cell in left)
    busy: dict[str, Future[Record]] = {}  # running training runs by key
    with workers(jobs) as pool, console.progress("arena: at most", most, "training runs") as advance:
        try:
            while True:
                # Cell by cell, so that they are completed in turn.
                missing = chain.from_iterable(tuning.missing(cell, records) for cell in left)
                waiting = (training for training in missing if training.key not in busy)
                for training in islice(waiting, jobs - len(busy)):
                    busy[training.key] = pool.submit(measure, training)
                if not busy:
                    return
                for future in wait(busy.values(), return_when=FIRST_COMPLETED).done:
                    done = future.result()
                    record.append(path, done)
                    records[done.key] = done
                    del busy[done.key]
                    advance(1)
        except BrokenProcessPool:
            raise UserError("a worker was killed, perhaps for lack of memory: resume with --jobs 1") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check(cells: Sequence[Cell]) -> None:
    """Check the values of each cell, read the data of each task, then try each method on the base model's outline."""
    all_of(partial(_check_values, cell) for cell in cells)
    tasks = {cell.task: partial(_check_task, cell) for cell in cells}
    methods = {cell.method: partial(_check_method, cell) for cell in cells}
    for unit, checks in {"tasks": tasks, "methods": methods}.items():
        here = f"{PATH}: {cells[0].name}.{unit}"
        listed = console.track(checks.items(), "check", unit)
        all_of(partial(_check_at, f"{here}.{name}: ", check) for name, check in listed)
    all_of(partial(_check_epochs, cell) for cell in cells)


def _check_at(here: str, check_one: Callable[[], object]) -> None:
    try:
        check_one()
    except UserError as error:  # lines that name no other file are about the file of presets
        raise UserError(re.sub(rf"^{params.PARAMS}: ", here, str(error), flags=re.MULTILINE)) from None


def _check_values(cell: Cell) -> None:
    """Check that the values of a preset have an effect on a cell.

    Values of a preset or a task are for several methods, some of which do not read them; a method's are its own.

    Raises:
        UserError: if a value has no effect.
    """
    view = cell.first().view
    of_method = f"{PATH}: {cell.name}.methods.{cell.method}: "
    of_task = f"{PATH}: {cell.name}.tasks.{cell.task}: "
    lines = []
    if cell.chosen.is_trained:
        lines += [f"{of_method}{value.line}" for value in effects.idle_in_training(view.train)]
    for value in effects.idle_in_section(view.section):
        if value.key in cell.chosen.params:
            lines.append(f"{of_method}{value.line}")
    for value in effects.idle_in_labels(view.tokenize, view.dataset):
        if value.key in cell.preset.tasks[cell.task].params:
            lines.append(f"{of_task}{value.line}")
    for value in effects.idle_in_validation(view.train, view.dataset):
        where = of_method if value.key in cell.chosen.params else of_task
        lines.append(f"{where}{value.line}")
    for line in _idle_with_epochs(cell):
        lines.append(f"{PATH}: {cell.name}.{line}")
    if lines:
        raise UserError("\n".join(lines))
    _check_at(of_task, partial(run.check_class_weights, view))
    sets_precision = "train.precision" in cell.chosen.params
    _check_at(of_method if sets_precision else of_task, partial(processes.check_precision, view.train))


def _idle_with_epochs(cell: Cell) -> Iterator[str]:
    """Yield a line for each value without effect because the number of epochs is tuned."""
    factors = cell.preset.tuning.epochs
    if not factors or not cell.chosen.is_trained:
        return
    train = cell.first().view.train
    tried = {1.0, *factors}
    numbers = {plan.scale_epochs(train.epoch_count, factor) for factor in tried}
    if len(numbers) < len(tried):
        same = f"two factors give the same number of epochs on {cell.task}"
        yield f"tuning.epochs: {same}, where train.epochs is {train.epochs}"
    for key in ("patience", "extend_epochs"):
        value = getattr(train, key)
        if value != "none":
            yield f"tuning.epochs: on {cell.task}, train.{key}: {value} has no effect: the number of epochs is tuned"


def _check_task(cell: Cell) -> None:
    first = cell.first()
    view = first.view
    sources = [view.dataset.source]
    for tenant in first.unseen_tenants.values():
        sources.append(tenant.entry.source)
    for source in sources:
        _check_pins(source, cell.preset.files)
    processes.check_machine(view.train)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base_models.check_length(tokenizer.model_max_length, view.tokenize.max_length)
    task_tokens.folder_of(first)
    task = task_tokens.task_of(first)
    unseen.check(first, task)


def _check_pins(source: Source, pinned: Mapping[str, str]) -> None:
    paths = map(str, content.iter_local_paths(source))
    for path, digests in zip(paths, plan.digests([source]), strict=True):
        if path in pinned and digests != {".": pinned[path]}:
            raise UserError(f"{path}: not the file of the preset: its SHA-256 must be {pinned[path]}")


def _check_method(cell: Cell) -> None:
    if cell.chosen.features:
        features.check(cell.first())
    elif not cell.first().is_alone:
        build_plan(cell.first(), task_tokens.task_of(cell.first()))


def _check_epochs(cell: Cell) -> None:
    """Check that epochs and patience of a task or a method have an effect on a cell, whose tokens are there.

    Raises:
        UserError: if one has none.
    """
    first = cell.first()
    train = first.view.train
    if train.extend_epochs != "auto" or not cell.chosen.is_trained:
        return
    tokens = task_tokens.splits(first)["train"]
    lines = []
    for value in effects.idle_in_epochs(train, run.choose_extended_epochs(first.view, tokens)):
        if value.key in cell.chosen.params:
            place = f"methods.{cell.method}: on {cell.task}"
        elif value.key in cell.preset.tasks[cell.task].params:
            place = f"tasks.{cell.task}"
        else:
            continue
        lines.append(f"{PATH}: {cell.name}.{place}: {value.line}")
    if lines:
        raise UserError("\n".join(lines))


def workers(count: int) -> ProcessPoolExecutor:
    """Start worker processes that share the cores; they exit silently at Ctrl-C, and when this program is killed."""
    threads = str(max(1, (os.cpu_count() or 1) // count))  # workers read this when they import torch
    os.environ |= {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }
    # oneDNN compiles a kernel for every shape and keeps 1,024: batches of any length and layers of any rank have more.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def end() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=end, daemon=True).start()
