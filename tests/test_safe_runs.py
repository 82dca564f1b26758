"""Runs beside edits, other commands and kills, through DVC: nothing is lost, and what is recorded is what was read."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.core import artifacts
from tests import forked, workspace
from tests.kit import digests, write
from tests.repository import IDENTITY, SCRIPTS, add_row, files_row, make, quick
from tests.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("safe")]

MAKE = "make -o .venv/.with-pipeline,demo"
PAIR = ["the owl number 3 sleeps in the barn", "nobody saw 3 today at all"]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A Git repository with our code and a tiny configuration, after its first `dvc repro`, committed."""
    return make(tmp_path_factory.mktemp("committed"))


@pytest.fixture
def repository(committed, tmp_path):
    """A copy of it, with files that Git does not have in data/, models/ and reports/arena, and edits of some it has."""
    folder = shutil.copytree(committed, tmp_path / "repository", symlinks=True)
    write_own_files(folder)
    return folder


def write_own_files(folder):
    write(folder / "data/mine.csv", (folder / "data/ratings.csv").read_bytes())
    add_row(folder, "data/datasets.yaml", "mine", files_row("data/mine.csv"))
    with (folder / "data/README.md").open("a") as file:
        file.write("A note of mine.\n")
    write(folder / "models/mine/config.json", "{}")
    write(folder / "reports/arena/mine/records.jsonl", "a record\n")
    write(folder / "notes.txt", "mine, too")


def own_files(folder):
    """The bytes of what Git does not have."""
    names = ("data/mine.csv", "data/datasets.yaml", "data/README.md", "models/mine/config.json", "notes.txt")
    return {name: (folder / name).read_bytes() for name in (*names, "reports/arena/mine/records.jsonl")}


def results(folder):
    with contextlib.chdir(folder):
        return digests(
            "artifacts", *(f"reports/{stage}" for stage in ("tokenize", "factorize_init", "train", "evaluate"))
        )


class Run:
    """A command, one stage of which waits until it is told to go on; its processes end with it."""

    def __init__(self, folder, stage, *words, python=None):
        self.place = folder.parent / f"held-{time.monotonic_ns()}"
        self.place.mkdir()
        write(self.place / "bin/python", f'#!/bin/sh\nexec "{python or forked.scripts() / "python"}" -m held "$@"\n')
        (self.place / "bin/python").chmod(0o700)
        shutil.copy(ROOT / "tests/held.py", self.place)
        path = os.pathsep.join(map(str, (self.place / "bin", SCRIPTS, os.environ["PATH"])))
        held = {"HELD": stage, "HELD_IN": str(self.place), "PYTHONPATH": str(self.place), "PATH": path}
        settings = {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", **IDENTITY, **held}
        self.log = self.place / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )
        while not (self.place / "begun").exists():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def end(self, code=0):
        (self.place / "go").touch()
        assert self.process.wait(600) == code, self.log.read_text()
        return self.log.read_text()

    def kill(self):
        """Kill the command and all processes of its group, as at the end of a job or of the memory."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


def predicted(folder, *words):
    """Return what `predict` prints for a pair of texts, and what it says on standard error."""
    run = subprocess.run(
        [forked.scripts() / "python", "-m", "pipeline.predict", *PAIR, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def second_run_beside_a_first(folder):
    """Have a run of 4 epochs train, start one of 9 in another terminal, and let the first end."""
    recorded = trained(folder)
    first = Run(folder, "stages.train", "dvc", "exp", "run", "-S", "train.epochs=4")
    assert "busy" in quick(folder, "dvc", "exp", "run", "-S", "train.epochs=9", code=255)
    said = first.end(code=255)
    line = "params.yaml: train.epochs: changed from 4 to 9 while the stage train ran; its outputs are removed"
    assert said.count(line) == 1
    assert "Traceback" not in said
    assert trained(folder) == recorded


def trained(folder):
    return workspace.read_yaml(folder / "dvc.lock")["stages"]["train"]


@pytest.mark.nightly
def test_a_second_run_in_another_terminal_does_not_change_what_is_recorded_for_the_first(repository):
    with contextlib.chdir(repository):
        before = digests("artifacts/adapter")
    second_run_beside_a_first(repository)
    with contextlib.chdir(repository):
        assert before.items() <= digests("artifacts/adapter").items()  # that of the last run


@pytest.mark.nightly
def test_after_a_second_run_in_another_terminal_all_is_as_after_a_clean_run(repository, tmp_path):
    second_run_beside_a_first(repository)
    quick(repository, "dvc", "repro")
    assert trained(repository)["params"]["params.yaml"]["train"]["epochs"] == 9
    clone = tmp_path / "clone"
    quick(tmp_path, "git", "clone", "--quiet", str(repository), str(clone))
    write_own_files(clone)
    shutil.copy(repository / "params.yaml", clone / "params.yaml")
    quick(clone, "dvc", "repro")
    assert results(clone) == results(repository)
    assert (clone / "dvc.lock").read_bytes() == (repository / "dvc.lock").read_bytes()


@pytest.mark.nightly
def test_the_last_adapter_is_used_while_the_next_one_trains_and_after_its_run_was_killed(repository):
    with contextlib.chdir(repository):
        before = digests("artifacts/adapter")
    answer, note = predicted(repository)
    assert note == ""
    says = "from the last finished training run: lsr on tiny, glue, seed 0, commit "
    run = Run(repository, "stages.train", "dvc", "exp", "run", "-S", "seed=1", python=sys.executable)
    during, note = predicted(repository)
    assert during == answer
    assert (note.count("\n"), note.startswith(f"artifacts/adapter: {says}")) == (1, True)
    assert re.search(r"commit [0-9a-f]{7,} of \d{4}-\d\d-\d\d; a later run has begun and not replaced it yet\n", note)
    scored = quick(repository, "python", "-m", "pipeline.score", "glue", "artifacts/adapter")
    assert says in scored
    exported = quick(repository, "lsr", "export", "artifacts/adapter", "--to", "lora", "-o", "build/lora")
    assert says in exported
    assert not (repository / "build/lora/.previous-run").exists()
    run.kill()
    assert predicted(repository) == (answer, note)
    with contextlib.chdir(repository):
        assert before.items() <= digests("artifacts/adapter").items()
    quick(repository, "dvc", "repro")
    after, note = predicted(repository)
    assert note == ""
    assert after != answer
    quick(repository, *MAKE.split(), "undo")
    assert predicted(repository) == (answer, "")


def test_where_the_cache_lacks_the_committed_run_going_back_changes_nothing(committed, tmp_path):
    folder = shutil.copytree(committed, tmp_path / "repository", symlinks=True)
    mine = (folder / "dvc.lock").read_bytes()
    lock = workspace.read_yaml(folder / "dvc.lock")
    for out in lock["stages"]["train"]["outs"]:  # as a run of another machine has them
        out["md5"] = "0" * 32 + ".dir" * out["md5"].endswith(".dir")
    (folder / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")
    quick(folder, "git", "commit", "--quiet", "--message", "A run of another machine", "dvc.lock")
    (folder / "dvc.lock").write_bytes(mine)
    change_seed(folder, 7)
    with contextlib.chdir(folder):
        before = digests("artifacts") | digests("reports")
    code, said = typed(folder, f"{MAKE} undo")
    assert code
    assert "undo: outputs of the committed run are not in the cache: nothing is changed; " in said
    assert (folder / "dvc.lock").read_bytes() == mine
    assert "seed: 7" in (folder / "params.yaml").read_text()
    with contextlib.chdir(folder):
        assert digests("artifacts") | digests("reports") == before


def change_seed(folder, seed):
    write(folder / "params.yaml", workspace.merged(workspace.read_yaml(folder / "params.yaml"), {"seed": seed}))


@pytest.mark.nightly
def test_a_sweep_in_which_some_fail_shows_no_score_of_theirs_and_the_best_is_one_that_succeeded(committed, tmp_path):
    folder = shutil.copytree(committed, tmp_path / "repository", symlinks=True)
    quick(folder, "dvc", "exp", "run", "--queue", "-S", "lsr.alpha=one,8,two")
    quick(folder, "dvc", "exp", "run", "--run-all")
    quick(folder, "dvc", "exp", "run", "--queue", "-S", "lsr.alpha=9")
    listed = quick(folder, *MAKE.split(), "experiments")
    header, *lines = [line.strip() for line in listed.splitlines() if " | " in line]
    columns = header.removeprefix("experiments: ").split(" | ")
    rows = [dict(zip(columns, line.split(" | "), strict=True)) for line in lines]
    scores = {row["lsr.alpha"]: (row["State"], row["score"] != "", row["read"] != "") for row in rows[2:]}
    failed = ("Failed", False, False)
    assert scores == {"one": failed, "two": failed, "8": ("Success", True, True), "9": ("Queued", False, False)}
    (winner,) = (row["Experiment"] for row in rows if row["lsr.alpha"] == "8")
    said = quick(folder, "python", "-m", "pipeline.experiments", "--best")
    assert said.splitlines()[0] == winner or said.splitlines()[-1] == winner
    assert "on glue: the best of 1 experiment; left out: " in said
    assert "2 failed" in said
    assert "1 queued" in said
    quick(folder, "sh", "-c", 'dvc exp apply "$(python -m pipeline.experiments --best)"')
    assert "alpha: 8" in (folder / "params.yaml").read_text()
    quick(folder, *MAKE.split(), "undo")
    write(folder / "params.yaml", workspace.merged(workspace.read_yaml(folder / "params.yaml"), {"data": "ratings"}))
    refusal = quick(folder, "python", "-m", "pipeline.experiments", "--best", code=2)
    assert refusal.startswith("no experiment on ratings has succeeded since the last commit; left out: ")


# The commands of Git and DVC, and those of them that remove and overwrite no file of a user's, whatever follows.
VERBS = {
    "git": "add am apply branch checkout cherry-pick clean clone commit config diff fetch gc init log merge mv pull "
    "push rebase reset restore revert rm show stash status switch tag worktree",
    "dvc": "add artifacts cache checkout commit config data destroy diff exp fetch gc get import init install list "
    "metrics move params plots pull push queue remote remove repro root stage status unprotect update",
}
HARMLESS = {
    "git": "add clone commit config diff push show tag",
    "dvc": "add artifacts cache commit config exp metrics plots pull push queue remote repro",
}
# Those that overwrite name each file that they overwrite, and Git has all of these.
NAMED = (
    "git checkout HEAD params.yaml",
    "git checkout HEAD {PARAMS}",  # as our code prints it
    "git restore --staged data models",
    "git checkout HEAD -- $(RESTORED)",
    "dvc checkout --force $(STAGES)",
    "dvc checkout --force --quiet $(STAGES)",
)
OF_MAKEFILE = (  # what those of the Makefile restore
    "RESTORED := params.yaml dvc.lock $(addprefix reports/,tokenize factorize_init train evaluate)\n",
    "STAGES := tokenize factorize-init train evaluate\n",
)
WORDS = {program: words.replace(" ", "|") for program, words in VERBS.items()}
COMMAND = re.compile(rf"\b(?:git ({WORDS['git']})|dvc ({WORDS['dvc']}))\b[^`\n&|;]*")
CODE = re.compile(r"^```.*?^```|^(?: {4}|\t)[^\n]*$|`[^`]+`", re.MULTILINE | re.DOTALL)  # on a page, or of a Makefile


def pages():
    """Yield the code on pages, in the Makefile and in scripts of examples."""
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")]
    for folder in ("docs", "data", "models", "examples"):
        named += (ROOT / folder).rglob("*.md")
    for path in named:
        for code in CODE.findall(path.read_text(encoding="utf-8")):
            yield code if code.startswith("```") else code.replace("\n", " ")
    for path in (ROOT / "examples").rglob("*.sh"):
        yield path.read_text(encoding="utf-8")


def messages():
    """Yield the strings of our code; those with values have expressions in braces."""
    for package in ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
            formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
            inner = {id(part) for node in formatted for part in node.values}
            yield from ("".join(map(shown, node.values)) for node in formatted)
            yield from (shown(node) for node in nodes if isinstance(node, ast.Constant) and id(node) not in inner)


def shown(part):
    return str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"


def test_every_documented_or_printed_command_of_git_and_dvc_removes_nothing_or_names_what_it_restores():
    actual = {match for text in (*pages(), *messages()) for match in COMMAND.finditer(text)}
    assert len(actual) > 100
    harmless = {*HARMLESS["git"].split(), *HARMLESS["dvc"].split()}
    others = {match[0].strip() for match in actual if (match[1] or match[2]) not in harmless}
    assert others - set(NAMED) == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(definition in makefile for definition in OF_MAKEFILE)


# What is walked: that which changes files, and one of each kind that runs something.
WALKED = (
    f"{MAKE} undo",
    "git checkout HEAD params.yaml",
    "git restore --staged data models",
    'git commit -qam "Take the best"',
    "dvc repro",
    "dvc exp run -S seed=2",
    "dvc exp run --queue -S seed=3,4",
    f"{MAKE} experiments",
    "dvc metrics diff",
    "dvc add data/mine.csv",
)


@pytest.fixture(scope="module")
def killed(committed, tmp_path_factory):
    """The repository with files of the user's own, after a run that was killed while it trained."""
    folder = shutil.copytree(committed, tmp_path_factory.mktemp("killed") / "repository", symlinks=True)
    write_own_files(folder)
    run = Run(folder, "stages.train", "dvc", "exp", "run", "-S", "seed=1", python=sys.executable)
    run.kill()
    staged = quick(folder, "git", "diff", "--cached", "--name-only").splitlines()
    assert {"data/mine.csv", "data/datasets.yaml", "models/mine/config.json"} <= set(staged)  # as DVC does
    return folder


def typed(folder, command):
    """Type a command in a shell, whether it succeeds there or is refused."""
    path = os.pathsep.join(map(str, (forked.scripts(), SCRIPTS, os.environ["PATH"])))
    settings = {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", **IDENTITY}
    run = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.usefixtures("trials")
@pytest.mark.parametrize("command", [WALKED[0]])
def test_going_back_after_a_hard_kill_restores_the_committed_run_and_keeps_every_other_file(killed, tmp_path, command):
    walk_after_a_kill(killed, tmp_path, command)


@pytest.mark.usefixtures("trials")
@pytest.mark.nightly
@pytest.mark.parametrize("command", WALKED[1:])
def test_no_documented_command_loses_a_file_after_a_hard_kill(killed, tmp_path, command):
    walk_after_a_kill(killed, tmp_path, command)


def walk_after_a_kill(killed, tmp_path, command):
    folder = shutil.copytree(killed, tmp_path / "repository", symlinks=True)
    before = own_files(folder)
    typed(folder, command)  # or is refused: `dvc add` takes no file that an experiment has staged
    assert own_files(folder) == before
    if command.startswith("git commit"):
        return  # half a run is committed now, and there is no other to go back to
    code, said = typed(folder, f"{MAKE} undo")
    assert code == 0, said
    assert own_files(folder) == before
    committed = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=folder, capture_output=True, check=True).stdout
    assert (folder / "params.yaml").read_bytes() == committed
    assert not (folder / artifacts.ADAPTER / ".previous-run").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("command", WALKED)
def test_no_documented_command_loses_a_file_beside_a_run(repository, command):
    run = Run(repository, "stages.train", "dvc", "exp", "run", "-S", "seed=1")
    before = own_files(repository)
    typed(repository, command)
    assert own_files(repository) == before
    (run.place / "go").touch()
    run.process.wait(600)  # it ends, or with a line if the command has changed what it reads
    assert "Traceback" not in run.log.read_text()
    assert own_files(repository) == before


@pytest.mark.nightly
@pytest.mark.parametrize("command", WALKED)
def test_no_documented_command_loses_a_file_where_nothing_runs(repository, command):
    before = own_files(repository)
    typed(repository, command)
    assert own_files(repository) == before
