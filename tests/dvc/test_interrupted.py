"""Stages whose inputs change meanwhile, and commands that are killed: what is left is whole, or nothing.

The commands run in forked processes, which have imported everything; what is compared with is an undisturbed run.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from tests import helpers
from tests.helpers import change_params, digests, edit, write

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
KILLED = 9
STOPPED = 130  # by Ctrl-C
CHANGES = {"os.rename", "os.rmdir", "shutil.rmtree"}  # audit events


def change_value():
    change_params(Path(), train={"head_learning_rate": 0.1})
    return "train.head_learning_rate"


def change_model():
    edit(Path("models/bert/config.json"), architectures=["another"])
    return "models/bert/config.json"


def change_entry():
    edit(Path("pipeline/datasets.yaml"), lambda entries: entries["two"].update(metrics=["accuracy"]))
    return "two"


def change_what_no_stage_reads():
    write(Path("data/other.csv"), "text,label\n")
    change_params(Path(), lora={"r": 5})
    return ""


def run_train():
    """Run the stage train, and write how it ends."""
    ended = helpers.run("stages.train")
    write(Path("ended.json"), [ended.status, ended.err])


def train_while(change):
    """Have a process train; make a change after its first epoch; return exit status, messages, and what they name."""
    process = FORK.Process(target=run_train)
    process.start()
    while not list(Path().glob(".checkpoints/*/*")):
        assert process.is_alive()
        time.sleep(0.01)
    named = change()
    process.join()
    return *helpers.read_json(Path("ended.json")), named


@pytest.mark.parametrize("change", [change_value, change_model, change_entry])
def test_a_stage_whose_input_changes_ends_with_a_line_and_without_outputs(copied, change):
    copied()
    change_params(Path(), train={"epochs": 6})
    status, said, named = train_while(change)
    assert status == 2, said
    assert named in said
    assert said.count("\n") == 1
    assert not Path("reports/train/metrics.json").exists()
    assert not Path("artifacts/adapter").exists()


def test_what_a_stage_does_not_read_may_change_meanwhile(copied):
    copied()
    change_params(Path(), train={"epochs": 6})
    status, said, _ = train_while(change_what_no_stage_reads)
    assert status == 0, said
    assert Path("artifacts/adapter").is_dir()


def kill():
    os._exit(KILLED)


def interrupt():
    raise KeyboardInterrupt


def run_until(step, stop, module, words):
    """Run a command that is stopped before its change of this number."""
    left = step

    def count(event, _):
        nonlocal left
        left -= event in CHANGES
        if left == 0 and event in CHANGES:
            stop()

    sys.addaudithook(count)
    sys.exit(helpers.run(module, *words).status)


def is_stopped(step, stop, module, words):
    """Run a command in a process that is stopped before its change of this number; return whether it has so many."""
    process = FORK.Process(target=run_until, args=(step, stop, module, words))
    process.start()
    process.join()
    assert process.exitcode in (0, KILLED, STOPPED)
    return process.exitcode != 0


EXPORT = ("export", "artifacts/adapter", "--to", "lora", "-o", "build/lora", "--force")
COMMANDS = {"artifacts/init": ("stages.factorize_init", ()), "build/lora": ("lsr", EXPORT)}


@pytest.mark.parametrize("stop", [kill, interrupt])
@pytest.mark.parametrize("folder", COMMANDS)
def test_a_command_that_is_stopped_anywhere_leaves_its_folder_whole(copied, folder, stop):
    copied()
    module, words = COMMANDS[folder]
    helpers.printed(module, *words)
    new = digests(Path(folder))
    write(Path(folder, "old.txt"), "of an earlier run")
    old = digests(Path(folder))
    whole = [old, new, {}] if stop is kill else [old, new]  # killed between two changes: the next command repairs it
    step = 1
    while is_stopped(step, stop, module, words):
        assert digests(Path(folder)) in whole
        step += 1
    assert step > 2
    assert digests(Path(folder)) == new
