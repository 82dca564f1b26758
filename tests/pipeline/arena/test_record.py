"""Files of records: read together, whole after a kill, and refused where they hold something else."""

import pytest

from pipeline.arena import plan, preset, record
from tests.kit import refused
from tests.pipeline.arena.small import recorded


@pytest.fixture
def trainings(arena):
    [entry] = plan.entries("small", preset.load("small"), ["glue: LoRA r=1"])
    return [entry.training(plan.Setting(), seed) for seed in (0, 1)]


def test_what_a_killed_run_left_of_a_line_is_passed_over_and_cut_off(trainings, tmp_path):
    path = tmp_path / "a.jsonl"
    record.append(path, recorded(trainings[0], 0.5))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert record.read(tmp_path).keys() == {trainings[0].key}
    record.append(path, recorded(trainings[1], 0.5))
    assert record.read(tmp_path).keys() == {training.key for training in trainings}


@pytest.mark.parametrize("line", ["nothing", '{"key": 3}'])
def test_a_line_that_is_no_record_is_named(line, trainings, tmp_path):
    record.append(tmp_path / "a.jsonl", recorded(trainings[0], 0.5))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(f"{line}\n")
    said = refused(record.read, tmp_path, says="a.jsonl: line 2 is not a record of the arena: ")
    assert said.endswith("; delete the line")


def test_of_epochs_with_equal_scores_the_last_is_selected(trainings):
    made = recorded(trainings[0], 0.5)
    test = tuple({"accuracy": value} for value in (0.1, 0.2, 0.3, 0.4))
    several = made.model_copy(update={"validation": (0.5, 0.7, 0.7, 0.6), "test": test})
    assert several.selected == 2
    assert several.score() == 0.3
