"""Trainings on several processes and those that are killed end with one set of files, and leave nobody behind."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import chdir, suppress
from pathlib import Path
from pkgutil import resolve_name

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline.core import artifacts
from pipeline.data import inputs
from tests import workspace, writers
from tests.kit import digests, write
from tests.stages import shops
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, killed_training, report, run

pytestmark = pytest.mark.nightly
STAGE = [sys.executable, "-m", "stages.train"]
TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", "2", "-m"]
BY_HAND = [*TORCHRUN, "stages.train"]


@pytest.fixture
def two(after):
    """A tiny workspace before a training on two processes; a smaller last batch of its 130 rows would be filled up."""
    return after(train={"batch_size": 10, "processes": 2})


def started(words=STAGE, **options):
    environment = os.environ | {"PYTHONPATH": str(workspace.ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, start_new_session=True, preexec_fn=listen, **pipes, **options)


def listen():
    """Have a process hear Ctrl-C even if this one has been started in the background, where a shell ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def done(words=STAGE):
    process = started(words)
    out, error = process.communicate()
    return process.returncode, out, error


def is_alive(process):
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("class_weights", "refit"), [("none", False), ("balanced", False), ("none", True)])
def test_two_processes_train_what_one_does_but_for_rounding(two, class_weights, refit):
    workspace.change(train={"class_weights": class_weights, "refit": refit})
    if class_weights == "balanced":
        table = pd.read_parquet("glue/mrpc/train-00000.parquet")
        few = table.query("label == 1")[:21]  # train then has 66 rows of a class and 14 of the other: 8 whole batches
        pd.concat([table.query("label == 0"), few]).to_parquet("glue/mrpc/train-00000.parquet", index=False)
        run(TOKENIZE, FACTORIZE)
    path = two / "tiny-roberta/config.json"  # each process draws its own dropout
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    run(TOKENIZE)
    workspace.change(train={"processes": 1})
    run(TRAIN)
    alone, scores = load_file(artifacts.ADAPTER / WEIGHTS), report(artifacts.TRAIN_METRICS)
    workspace.change(train={"processes": 2})
    code, out, error = done()
    assert (code, error) == (0, "")
    assert out.count("train: epoch") == 1
    torch.testing.assert_close(load_file(artifacts.ADAPTER / WEIGHTS), alone, rtol=1e-3, atol=1e-4)
    assert report(artifacts.TRAIN_METRICS) == pytest.approx(scores, rel=1e-3)
    assert not any(path.is_dir() for path in Path(".checkpoints").iterdir())
    here = digests("artifacts", "reports")
    assert done(BY_HAND)[0] == 0
    assert digests("artifacts", "reports") == here


def test_two_processes_share_rows_of_heads_among_tenants_as_one_does(tmp_path, monkeypatch):
    workspace.make(
        tmp_path, data="shops", adapter="lora", train={"batch_size": 18, "epochs": 1}, tenants={"precision": "float32"}
    )
    monkeypatch.chdir(tmp_path)
    write("data/shops.csv", shops.rows(shops.LABELS))  # 126 of them in train, which are whole batches
    write("data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    path = tmp_path / "tiny-roberta/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    run(TOKENIZE, FACTORIZE, TRAIN)
    alone, entries = load_file(artifacts.ADAPTER / WEIGHTS), load_file(artifacts.BANK / FILE)
    workspace.change(train={"processes": 2})
    code, _, error = done()
    assert (code, error) == (0, "")
    torch.testing.assert_close(load_file(artifacts.ADAPTER / WEIGHTS), alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(load_file(artifacts.BANK / FILE), entries, rtol=1e-3, atol=1e-4)


def test_each_token_of_a_completion_counts_alike_whichever_process_has_it(tmp_path, monkeypatch):
    rows = writers.rows(118)  # 72 of them in train, which are whole batches
    for number, row in enumerate(rows):
        row["place"] += " in the barn" * (number % 4)
    writers.make(tmp_path, written=rows, adapter="lora", train={"batch_size": 12})
    monkeypatch.chdir(tmp_path)
    run(TOKENIZE, FACTORIZE, TRAIN)
    alone, scores = load_file(artifacts.ADAPTER / WEIGHTS), report(artifacts.TRAIN_METRICS)
    workspace.change(train={"processes": 2})
    code, _, error = done()
    assert (code, error) == (0, "")
    torch.testing.assert_close(load_file(artifacts.ADAPTER / WEIGHTS), alone, rtol=1e-3, atol=1e-4)
    assert report(artifacts.TRAIN_METRICS) == pytest.approx(scores, rel=1e-5)


def rows_read(file, epochs):
    """Train until after so many epochs; return the rows of train that both processes have read, by epoch."""
    done([*TORCHRUN, "tests.stages.rows_read", file, str(epochs)])
    found = defaultdict(Counter)
    for process in range(2):
        for line in Path(f"{file}-{process}").read_text().splitlines():
            epoch, rows = json.loads(line)
            found[epoch].update(rows)
    return dict(found)


# Examples per step, and how many of train's 130 the last step of an epoch reads again, because it is filled up.
STEPS = [(10, 0), (12, 2)]


@pytest.mark.parametrize(("batch_size", "again"), STEPS)
def test_two_processes_that_drop_out_read_each_row_of_train_once_an_epoch_also_after_a_kill(two, batch_size, again):
    """The reference is the list of all rows: what a process reads is noted where rows are taken from the table."""
    workspace.change(train={"batch_size": batch_size, "epochs": 4})
    assert json.loads((two / "tiny-roberta/config.json").read_text())["hidden_dropout_prob"] > 0
    undisturbed = rows_read("undisturbed", 4)
    assert undisturbed.keys() == {1, 2, 3, 4}
    for epoch, rows in undisturbed.items():
        assert set(rows) == set(range(130)), epoch
        assert rows.total() == 130 + again, epoch
    whole = digests("artifacts", "reports")
    assert rows_read("killed", 2.5).keys() == {1, 2}
    assert rows_read("resumed", 4) == {epoch: undisturbed[epoch] for epoch in (3, 4)}
    assert digests("artifacts", "reports") == whole


def test_two_processes_begin_again_together_where_a_checkpoint_is_damaged(two):
    workspace.change(train={"epochs": 3})
    undisturbed = rows_read("undisturbed", 3)
    whole = digests("artifacts", "reports")
    rows_read("killed", 2.5)
    for state in Path(".checkpoints").glob("*/checkpoint-*/rng_state_1.pth"):  # which the second process reads
        state.write_bytes(bytes(state.stat().st_size))
    assert rows_read("again", 3) == undisturbed
    assert digests("artifacts", "reports") == whole


def test_a_mistake_is_said_once_and_the_exit_code_is_that_of_one_process(two):
    workspace.change(train={"batch_size": 9})
    says = "params.yaml: train.batch_size: 9 examples per step cannot be divided equally among 2 processes or GPUs\n"
    assert done() == (2, "", says)
    workspace.change(train={"batch_size": 10})
    artifacts.tokens("train").unlink()
    code, _, error = done()
    assert (code, error.count("\n")) == (2, 1), error
    workspace.change(train={"processes": 5})
    code, _, error = done(BY_HAND)
    assert code == 1  # torchrun's own
    assert error.count("params.yaml: train.processes: must be 2, as many as torchrun has started, got 5\n") == 1


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize(("sent", "code", "says"), [("INT", 130, "stopped\n"), ("TERM", 143, ""), ("KILL", -9, "")])
def test_a_signal_ends_all_processes_and_the_next_run_goes_on_to_the_same_bytes(two, sent, code, says):
    workspace.change(train={"epochs": 8})
    assert done()[0] == 0
    whole = digests("artifacts", "reports")
    process = started()
    wait_until(lambda: list(Path(".checkpoints").glob("*/checkpoint-*")))
    found = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.Signals[f"SIG{sent}"])
    _, error = process.communicate()
    assert process.returncode == code
    assert error == says or sent == "KILL"  # of which a process may hear by the other one's silence
    wait_until(lambda: not any(map(is_alive, found)))
    assert list(Path(".checkpoints").glob("*/checkpoint-*"))
    assert done()[0] == 0
    assert digests("artifacts", "reports") == whole


EPOCHS = 3
DEAD = 9  # exit status
# What is called, and the call at which the process dies: of its second epoch, or at the end of the training.
DEATHS = {
    "half of an optimizer is written": ("torch", "save", 5),  # optimizer, schedule and random state of each epoch
    "a checkpoint is complete but not sealed": ("pipeline.training.checkpoints", "seal", 2),
    "the adapter is complete but aside": ("pathlib:Path", "replace", "adapter"),
    "a curve is complete but aside": ("pathlib:Path", "replace", "validation_loss.csv"),
}


def train():
    """Train as the stage does, in a process that may have died here before."""
    torch.set_num_threads(1)
    run(TRAIN)


def die(folder, owner, name, when):
    """Train in a folder until the call of a function of a number, or with a path of a name."""
    os.chdir(folder)
    owner, calls = resolve_name(owner), itertools.count(1)
    usual = getattr(owner, name)

    def call(*words, **options):
        if next(calls) != when and not (isinstance(when, str) and Path(words[1]).name == when):
            return usual(*words, **options)
        if name == "save":
            usual(*words, **options)
            path = Path(words[1])
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        os._exit(DEAD)

    setattr(owner, name, call)
    train()


def leftovers():
    """What a stage that was cut off has left beside its outputs, and folders of checkpoints."""
    hidden = {path.as_posix() for folder in ("artifacts", "reports") for path in Path(folder).rglob(".*")}
    return hidden | {path.as_posix() for path in Path(".checkpoints").iterdir() if path.is_dir()}


def written():
    return digests("artifacts/adapter", "reports/train")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace in which a model that drops out has been trained, and what that has written."""
    lsr = {"dropout": 0.1, "learning_rate": 0.05}
    folder = workspace.make(tmp_path_factory.mktemp("trained"), train={"epochs": EPOCHS}, lsr=lsr)
    with chdir(folder):
        run(TOKENIZE, FACTORIZE, TRAIN)
        return folder, written()


@pytest.fixture
def at(trained, monkeypatch):
    """The same, in its folder."""
    monkeypatch.chdir(trained[0])
    return trained


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize("death", DEATHS)
def test_a_death_while_writing_changes_nothing(at, death):
    folder, undisturbed = at
    process = multiprocessing.get_context("spawn").Process(target=die, args=(folder, *DEATHS[death]))
    process.start()
    process.join()
    assert process.exitcode == DEAD
    assert leftovers()
    train()
    assert written() == undisturbed
    assert leftovers() == set()


@pytest.mark.usefixtures("trials")
def test_a_moved_repository_changes_nothing(at, tmp_path, monkeypatch):
    killed_training(monkeypatch, EPOCHS - 0.5)
    moved = tmp_path / "moved"
    shutil.copytree(".checkpoints", moved / ".checkpoints")
    monkeypatch.setenv("DVC_ROOT", str(moved))
    train()
    assert written() == at[1]


@pytest.mark.parametrize("words", [STAGE, BY_HAND], ids=["one that starts two", "torchrun by hand"])
def test_parameters_that_change_while_two_processes_train_end_them_with_one_line_and_without_outputs(two, words):
    workspace.change(train={"epochs": 4})
    process = started(words)
    wait_until(lambda: any(Path(".checkpoints").glob("*/checkpoint-*")))  # both have read the parameters
    workspace.change(train={"epochs": 7})
    _, error = process.communicate()
    assert process.returncode != 0
    assert error.count("params.yaml: train.epochs: changed from 4 to 7 while the stage train ran") == 1
    assert not any(path.exists() for path in inputs.outputs("train"))


def test_processes_that_have_read_other_parameters_end_with_a_line_and_do_not_wait_for_each_other(two, monkeypatch):
    other = shutil.copytree(Path(), two / "other", ignore=shutil.ignore_patterns("other"))
    with chdir(other):
        workspace.change(train={"epochs": 7})
    second = "import os\nif os.environ.get('RANK') == '1':\n    os.chdir('other')\n"
    write(two / "late/sitecustomize.py", second)
    path = os.pathsep.join((str(two / "late"), str(workspace.ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(BY_HAND, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode != 0
    assert ran.stderr.count("train: an input has changed while its processes started; run it again") == 1
