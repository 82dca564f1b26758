"""Check that everything in a comparison can run, before any of it does."""

from collections.abc import Callable, Iterator, Sequence

from pipeline import params
from pipeline.arena import task_tokens
from pipeline.arena.files import check_pinned
from pipeline.arena.measure import planned, task_of
from pipeline.arena.plan import Entry
from pipeline.arena.preset import PATH
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.training import arguments


def check(entries: Sequence[Entry]) -> None:
    """Read the data of each task into the cache, and try each method on the outline of the base model.

    Raises:
        UserError: with one line for each mistake, all at once; it names the file and the key to change.
    """
    tasks = list({entry.task: entry for entry in entries}.values())
    methods = list({entry.method: entry for entry in entries}.values())
    mistakes: list[str] = []
    with console.progress("check", len(tasks) + len(methods), "tasks and methods") as advance:
        for entry in tasks:
            mistakes += _mistakes(entry, f"tasks.{entry.task}", _check_task)
            advance(1)
        for entry in methods if not mistakes else ():
            mistakes += _mistakes(entry, f"methods.{entry.method}", _check_method)
            advance(1)
    if mistakes:
        raise UserError("\n".join(mistakes))


def _mistakes(entry: Entry, place: str, check_one: Callable[[Entry], None]) -> Iterator[str]:
    """Yield what is wrong with a task or method; lines that name no other file are about that of the presets."""
    try:
        check_one(entry)
    except UserError as error:
        for line in str(error).splitlines():
            about_values = line.startswith(f"{params.PARAMS}: ")
            yield f"{PATH}: {entry.name}.{place}: {line.removeprefix(f'{params.PARAMS}: ')}" if about_values else line


def _check_task(entry: Entry) -> None:
    view = entry.first().view
    check_pinned(entry.preset.files, [view.dataset.source])
    arguments.check_machine(view.train)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base_models.check_length(tokenizer.model_max_length, view.tokenize.max_length)
    task_tokens.cached(task_of(entry.first()))


def _check_method(entry: Entry) -> None:
    planned(entry.first())
