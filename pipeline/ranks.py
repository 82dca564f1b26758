"""The processes of one training, as a launcher such as torchrun starts them: which one this is, and where they meet.

Ranks and addresses are those of the launcher's environment, in which a process alone finds none. What is exchanged here
is small and goes through the store where the processes find each other; tensors go the Trainer's way.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

from pipeline.core import console
from pipeline.core.errors import UserError, first_line

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SIZE, RANK = "WORLD_SIZE", "RANK"
PATIENCE = timedelta(days=30)  # the first process may wait for another training that has the same inputs
_meetings = count()


def size() -> int:
    """Return the number of processes.

    Raises:
        UserError: if the environment says no number.
    """
    return _number(SIZE, 1)


def rank() -> int:
    """Return which of them this is, from 0.

    Raises:
        UserError: if the environment does not say so.
    """
    return _number(RANK, 0 if size() == 1 else None)


def is_first() -> bool:
    """Say whether this process is the one that writes and speaks."""
    return rank() == 0


def refuse_others(stage: str) -> None:
    """Check that this process is alone, as a stage needs it.

    Raises:
        UserError: if it is not.
    """
    if size() > 1:
        raise UserError(f"{stage}: runs in one process, got {SIZE}={size()}; start it by python -m {stage}")


def stay_alone() -> None:
    """Forget the other processes, which have nothing to do: no library shall wait for them."""
    for name in (SIZE, RANK, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def wait() -> None:
    """Return when all processes have come here."""
    told(str)


def told(find: Callable[[], str]) -> str:
    """Return what the first process finds, in all of them, when all have come here."""
    if size() == 1:
        return find()
    key = f"lsr-adapt/{next(_meetings)}"
    if is_first():
        _store().set(f"{key}/found", find())
    if _store().add(f"{key}/here", 1) == size():
        _store().set(f"{key}/all", "")
    _store().wait([f"{key}/all"], PATIENCE)
    return str(_store().get(f"{key}/found").decode())


def may_speak() -> bool:
    """Say whether no process has said before why the training ends: one line is enough."""
    if size() == 1:
        return True
    try:
        return bool(_store().add("lsr-adapt/said", 1) == 1)
    except (UserError, RuntimeError):  # the store is gone or never was
        return is_first()


@contextmanager
def together() -> Iterator[None]:
    """Have the first process alone show what happens, and end all of them quietly where one has failed.

    Raises:
        UserError: if another process was lost.
        SystemExit: with code 1 after any other error, if another process has said before why it ends.
    """
    if size() == 1:
        yield
        return
    console.console.quiet = not is_first()
    try:
        _store()
        yield
        wait()
    except UserError:
        raise
    except Exception as error:
        if _is_of_a_lost_process(error):
            raise UserError(f"a process was lost; the launcher says how: {first_line(error)}") from None
        if not may_speak():
            raise SystemExit(1) from None
        raise
    _leave()


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    key = "lsr-adapt/left"
    if is_first():  # last: the store may be in this process
        _store().wait([f"{key}/all"], PATIENCE)
    elif _store().add(key, 1) == size() - 1:
        _store().set(f"{key}/all", "")


def _is_of_a_lost_process(error: Exception) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@cache
def _store() -> "Store":
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{SIZE} is {size()}, but the processes do not find each other: {first_line(error)}; start them with "
            "torchrun or accelerate launch"
        ) from None
    return store


def _number(name: str, alone: int | None) -> int:
    value = os.environ.get(name) or alone
    try:
        return int("" if value is None else value)
    except ValueError:
        raise UserError(f"{name}: the environment must say a number, got {value!r}") from None
