"""Check what this machine can train, and start several processes: the stage starts itself through torchrun."""

import importlib.util
import logging
import os
import signal
import tempfile
import threading
import time

import torch
from accelerate import PartialState
from accelerate.utils import gather

from pipeline.core import console
from pipeline.core.errors import FAILED, UserError
from pipeline.params import PARAMS
from pipeline.params.sections import TrainParams

HEX_DIGITS = 15  # hexadecimal digits of a digest that fit into 64 bits


def check_machine(train: TrainParams) -> None:
    """Check that this machine and these processes can train as configured, before anything is loaded.

    Raises:
        UserError: if they cannot; states what is possible.
    """
    check_precision(train)
    if train.precision == "bf16" and not has_fast_bf16():
        console.warn("train: this machine has no instructions for bf16, so train.precision: fp32 would be faster")
    for tracker in train.report_to:
        if importlib.util.find_spec(tracker) is None:
            install = f"install it with: pip install -c constraints.txt -e '.[{tracker}]'"
            raise UserError(f"{PARAMS}: train.report_to: {tracker} is not installed; {install}")
    if "WORLD_SIZE" not in os.environ:  # otherwise torchrun has started them, on other machines too
        _check_room(train.processes)
    parts = max(train.processes, shares())
    if train.batch_size % parts:
        raise UserError(
            f"{PARAMS}: train.batch_size: {train.batch_size} examples per step cannot be divided equally among "
            f"{parts} processes or GPUs"
        )


def check_precision(train: TrainParams) -> None:
    """Check that this machine supports the training precision.

    Raises:
        UserError: if not.
    """
    if train.precision == "fp16" and not torch.cuda.is_available():
        raise UserError(f"{PARAMS}: train.precision: fp16 needs a GPU, and there is none; fp32 and bf16 do not")


def _check_room(wanted: int) -> None:
    """Reject more processes than this machine has GPUs or, without GPUs, cores: each would wait for the others.

    Raises:
        UserError: if there are more; states the maximum.
    """
    gpus = torch.cuda.device_count()
    most = gpus or os.cpu_count() or 1
    if wanted > most:
        unit = "GPU" if gpus else "core"
        has = f"{most} {unit}{'s' * (most != 1)}"
        raise UserError(f"{PARAMS}: train.processes: must be at most {most}, as this machine has {has}, got {wanted}")


def has_fast_bf16() -> bool:
    """Return whether this machine has instructions for bf16 products."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def shares() -> int:
    """Return the number of shards of a batch: one per process, or per GPU of a single process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return count if count > 1 else max(1, torch.cuda.device_count())


def start(module: str, wanted: int) -> bool:
    """Run a module on several processes, unless this is one of them or one suffices; return whether they have run.

    Processes of torchrun, started here or by hand, end when it is killed.

    Raises:
        UserError: if torchrun was started by hand for another number of processes.
        SystemExit: with the exit code of the first process that fails, or 128 and the signal that ended this one.
    """
    if "WORLD_SIZE" not in os.environ:
        if wanted > 1:
            launch(module, wanted)
        return wanted > 1
    count = int(os.environ["WORLD_SIZE"])
    if wanted != count:
        raise UserError(f"{PARAMS}: train.processes: must be {count}, as many as torchrun has started, got {wanted}")
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return False


def check_same(digest: str) -> None:
    """Check that all processes of a training run have the same digest of its inputs, before they wait for each other.

    The Trainer must have been built, since it connects the processes.

    Raises:
        UserError: if an input has changed between the starts of two processes.
    """
    if "WORLD_SIZE" in os.environ:
        state = PartialState()
        number = torch.tensor([int(digest[:HEX_DIGITS], 16)], device=state.device)
        if len(gather(number).unique()) > 1:
            raise UserError("train: an input has changed while its processes started; run it again")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(FAILED)  # exits at once, whatever the training run does


def launch(module: str, wanted: int) -> None:
    """Run a module on this many processes through torchrun.

    Raises:
        SystemExit: with the exit code of the first process that fails, or 128 and the signal that ended this one.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // wanted)))
    logging.disable()  # torchrun's message: the failed process has printed its own
    # Without SIGINT: at Ctrl-C, torchrun ends the processes with SIGTERM, about which they have nothing to say.
    signals = "SIGTERM,SIGHUP,SIGQUIT"
    with tempfile.TemporaryDirectory() as folder:
        words = ["--standalone", "--nproc-per-node", str(wanted), "--log-dir", folder, "--signals-to-handle", signals]
        try:
            torchrun.run(torchrun.parse_args([*words, "-m", module]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if failure.exitcode < 0:
                raise SystemExit(f"{module}: a process was ended by {signal.Signals(-failure.exitcode).name}") from None
            raise SystemExit(failure.exitcode or FAILED) from None
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
        finally:
            logging.disable(logging.NOTSET)
