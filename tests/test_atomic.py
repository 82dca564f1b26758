"""A folder that is replaced is the old or the new one, whole, wherever the process that replaces it is killed."""

import os
import shutil
import sys

import pytest

from lsr.convert.writing import check_output, replace_folder
from pipeline.core import artifacts

WRITERS = {"pipeline": artifacts.replace_atomically, "lsr": replace_folder}
CHANGES = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}  # audit events
FILES = ("adapter_config.json", "deeper/adapter_model.safetensors")
KILLED = 9
STOPPED = 130


def fill(folder, text):
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(folder):
    return [(folder / name).read_text() for name in FILES]


def replace(writer, folder, text):
    with writer(folder) as new:
        fill(new, text)


def replace_until_killed(writer, folder, step):
    """Replace a folder in a process that ends, as by kill -9, before its change of that number; say whether it did."""
    process = os.fork()
    if process == 0:
        left = step

        def kill(event, _):
            nonlocal left
            left -= event in CHANGES
            if left == 0:
                os._exit(KILLED)

        sys.addaudithook(kill)
        replace(writer, folder, "new")
        os._exit(0)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED)
    return code == KILLED


def replace_until_stopped(writer, folder, step):
    """Replace a folder in a process that is stopped, as by Ctrl-C, before its change of that number; say whether."""
    process = os.fork()
    if process == 0:
        left = step

        def stop(event, _):
            nonlocal left
            left -= event in CHANGES
            if left == 0 and event in CHANGES:
                raise KeyboardInterrupt

        sys.addaudithook(stop)
        try:
            replace(writer, folder, "new")
        except KeyboardInterrupt:
            os._exit(STOPPED)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, STOPPED)
    return code == STOPPED


def fail_to_replace(writer, folder):
    with writer(folder) as new:
        fill(new, "half")
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", WRITERS)
def test_after_a_kill_between_any_two_steps_a_folder_is_whole(kind, tmp_path):
    folder = tmp_path / "adapter"
    writer = WRITERS[kind]
    step = 0
    whole = set()
    is_killed = True
    while is_killed:
        step += 1
        shutil.rmtree(tmp_path)
        fill(folder, "old")
        is_killed = replace_until_killed(writer, folder, step)
        with pytest.raises(ZeroDivisionError):  # the next one fails: what it would have replaced must be there
            fail_to_replace(writer, folder)
        assert texts(folder) in (["old", "old"], ["new", "new"])
        whole.add(texts(folder)[0])
        replace(writer, folder, "next")
        assert texts(folder) == ["next", "next"]
        assert not list(tmp_path.glob(".*.old"))
    assert step > 8
    assert whole == {"old", "new"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", WRITERS)
def test_after_a_stop_between_any_two_steps_a_folder_is_there_for_its_readers(kind, tmp_path):
    folder = tmp_path / "adapter"
    step = 0
    whole = set()
    is_stopped = True
    while is_stopped:
        step += 1
        shutil.rmtree(tmp_path)
        fill(folder, "old")
        is_stopped = replace_until_stopped(WRITERS[kind], folder, step)
        assert texts(folder) in (["old", "old"], ["new", "new"]), step
        whole.add(texts(folder)[0])
    assert step > 8
    assert whole == {"old", "new"}


def test_a_command_sees_what_a_killed_one_has_moved_aside(tmp_path):
    fill(tmp_path / "build", "old")
    (tmp_path / "build").rename(tmp_path / ".build.old")  # where a kill between two steps leaves it
    with pytest.raises(ValueError, match="exists; choose another folder, or replace it with --force"):
        check_output(tmp_path / "build", (), replace=False)
    assert texts(tmp_path / "build") == ["old", "old"]
