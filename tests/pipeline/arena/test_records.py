"""Committed records belong to the training runs of today's presets: a renamed key of a file repeats no training."""

import hashlib
import re
from pathlib import Path

import pytest

from pipeline.arena import plan, preset, record
from tests.workspace import ROOT, read_yaml

RENAMED = read_yaml(Path(__file__).with_name("renamed.yaml"))
PRESETS = sorted(RENAMED["records"])
KEY = re.compile(r'"key":"[0-9a-f]{16}",')  # of a record: a hash, in which names of values are contained


def lines(name):
    """The lines of the records of a preset, in the order in which they were written."""
    return (ROOT / record.FOLDER / name / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def with_former_names(text):
    for present, former in RENAMED["names"]:
        assert former not in text
        text = text.replace(present, former)
    return text


@pytest.mark.parametrize("name", PRESETS)
def test_records_differ_from_those_that_were_made_in_names_alone(name):
    count, digest = RENAMED["records"][name]
    text = "".join(lines(name)[:count])
    without_keys = KEY.sub("", with_former_names(text))
    assert hashlib.sha256(without_keys.encode()).hexdigest() == digest


def run_of(made, cells):
    """The training run of a preset that has the task, the method, the learning rates and the seed of a record."""
    chosen = cells[f"{made.task}: {made.method}"]
    first = chosen.first()
    head_multiplier = made.head_rate / first.head_rate
    multiplier = head_multiplier if made.rate is None else made.rate / first.rate
    setting = plan.Multipliers(multiplier) if made.rate is None else plan.Multipliers(multiplier, head_multiplier)
    if made.epochs is not None:
        setting = setting._replace(epochs_multiplier=made.epochs / first.epochs)
    return chosen.training(setting, made.seed)


@pytest.mark.parametrize("name", PRESETS)
def test_each_record_has_the_key_of_the_training_run_that_it_names(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    records = record.read(record.FOLDER / name)
    cells = {cell.title: cell for cell in plan.cells(name, preset.load(name))}
    assert len(records) >= RENAMED["records"][name][0]
    assert {key: run_of(made, cells).key for key, made in records.items()} == {key: key for key in records}
