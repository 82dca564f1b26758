"""The command: it runs what is missing, goes on after a stop, and prints what others can run."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.arena import __main__ as arena_command
from pipeline.arena import compete, record
from tests.kit import refused
from tests.pipeline.arena import small

RECORDS = record.FOLDER / "small" / "records.jsonl"


def run(*words):
    arena_command.main(["small", *words])


@pytest.fixture
def in_threads(monkeypatch):
    """Workers in this process, which import nothing again."""
    monkeypatch.setattr(compete, "workers", ThreadPoolExecutor)


def test_it_runs_what_is_missing_and_nothing_twice(arena, in_threads, capsys):
    small.use(seeds=[0, 1, 2])
    run("--only", "glue: LoRA r=1", "--jobs", "1")
    lines = RECORDS.read_text().splitlines()
    assert len(lines) == 2 + 2  # the tries, of which the best is the first seed, and two more seeds
    assert capsys.readouterr().out.endswith("compare: python -m pipeline.compare small\n")
    labels = RECORDS.parent.joinpath("labels/glue.csv").read_text().splitlines()
    assert labels[0] == "label"
    assert len(labels) == 1 + len(json.loads(lines[0])["predicted"])
    run("--only", "glue: LoRA r=1")
    assert RECORDS.read_text().splitlines() == lines
    RECORDS.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])  # as a kill leaves it
    run("--only", "glue: LoRA r=1", "--jobs", "1")
    keys = [json.loads(line)["key"] for line in RECORDS.read_text().splitlines()]
    assert keys == [json.loads(line)["key"] for line in lines]


def test_labels_of_files_stay_in_the_cache(arena, in_threads):
    run("--only", "ratings: head", "--jobs", "1")
    assert not record.labels_path("small", "ratings").exists()
    assert record.labels_path("small", "ratings", private=True).exists()


def test_an_unknown_entry_is_told_from_the_nearest(arena):
    says = "no entry has this in its title; did you mean glue: LoRA r=1?; a title is TASK: METHOD"
    refused(run, "--only", "glue: LoRA r=2", says=says)
