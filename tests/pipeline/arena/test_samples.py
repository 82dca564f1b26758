"""The part of a split that the arena reads is a random sample, the same for all methods and any order of a file."""

import random

import numpy as np
import pytest
from scipy import stats

from pipeline.arena import plan, preset, task_tokens
from pipeline.arena.execution import check
from pipeline.data import datasets
from tests import workspace
from tests.kit import refused, write
from tests.pipeline.arena import small

NAMES = ["calm", "glad", "sad"]
FILES = {"train": "moods-train.jsonl", "validation": "moods-validation.jsonl", "test": "moods-test.jsonl"}
ROW = {
    "source": {"kind": "files", "files": FILES},
    "text": ["text"],
    "label": {"column": "mood", "names": NAMES},
    "metrics": ["accuracy"],
}
READS = {"train": 60, "validation": 60, "test": 100, "max_tokens": "all"}
MIN_P = 0.01  # of a random sample, which is drawn once; the first rows of a sorted file have less than 1e-9


def moods(split, count):
    """Texts sorted by their labels, and of each label by their lengths."""
    made = [
        {"text": f"{split} {number}:" + " owl" * (number % 17), "mood": NAMES[number % 3], "who": "ab"[number % 2]}
        for number in range(count)
    ]
    return sorted(made, key=lambda row: (row["mood"], len(row["text"])))


def use(order=None, row=ROW, sample_sizes=READS, **task):
    """Write the files, in the order that a function gives rows, and the preset with their task."""
    counts = {"train": 240, "validation": 240, "test": 400}
    for split, name in row["source"]["files"].items():
        write(name, (order or list)(moods(split, counts[split])))
    write("data/datasets.yaml", {"moods": row})
    small.use(tasks={"moods": {"sample_sizes": sample_sizes, **task}})
    plan.digests_of.cache_clear()  # the files have changed in the meantime


def shuffled(seed):
    return lambda rows: random.Random(seed).sample(rows, len(rows))


def sample(split, title="moods: head", seed=0):
    """Return the examples of a split that a training run reads: label, length and tokens."""
    read = task_tokens.splits(small.training(title, seed))[split]
    return [(row["label"], row["length"], tuple(row["input_ids"])) for row in read]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_of_a_file_sorted_by_label_a_random_sample_is_read(split, arena):
    use()
    read = sample(split)
    use(sample_sizes=dict.fromkeys(READS, "all"))
    whole = sample(split)
    assert len(read) == len(set(read)) == READS[split] < len(whole)
    assert set(read) < set(whole)
    of_labels, of_all = (np.bincount([label for label, *_ in rows], minlength=3) for rows in (read, whole))
    assert stats.chisquare(of_labels, of_all * len(read) / len(whole)).pvalue > MIN_P
    lengths, all_lengths = ([length for _, length, _ in rows] for rows in (read, whole))
    assert stats.ks_2samp(lengths, all_lengths).pvalue > MIN_P


def test_each_place_in_a_file_is_as_likely_to_be_read(arena):
    read = np.zeros(4)  # by quarter of the file
    for seed in range(5):  # rows in other places
        use(shuffled(seed))
        place = {row["text"]: number for number, row in enumerate(shuffled(seed)(moods("test", 400)))}
        examples = datasets.load(small.training("moods: head").view.dataset, "moods").splits["test"]
        (batch,) = examples.in_order_of_hashes().batches(400)
        read += np.bincount([place[text] // 100 for text in batch["text"].to_pylist()[:100]], minlength=4)
    assert stats.chisquare(read).pvalue > MIN_P


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_sample_is_the_same_of_a_shuffled_file_and_for_all_methods_and_seeds(split, arena):
    use()
    expected = sample(split)
    for title, seed in (("moods: LoRA r=1", 0), ("moods: head", 1)):
        assert sample(split, title, seed) == expected
    for seed in range(3):
        use(shuffled(seed))
        assert sample(split) == expected


def test_of_equal_texts_with_different_labels_the_same_are_read_whatever_the_order(arena):
    def twice(rows):
        return [*rows, *({**row, "mood": NAMES[NAMES.index(row["mood"]) - 1]} for row in rows)]

    sample_sizes = {**READS, "validation": 61, "test": 101}  # an odd number ends between two equal texts
    use(twice, sample_sizes=sample_sizes)
    expected = {split: sample(split) for split in ("validation", "test")}
    use(lambda rows: shuffled(1)(twice(rows)), sample_sizes=sample_sizes)
    assert {split: sample(split) for split in expected} == expected


def test_of_each_tenant_a_random_sample_is_read(arena):
    row = {**ROW, "tenant": "who", "label": {"column": "mood"}}
    use(row=row)
    read = task_tokens.splits(small.training("moods: head"))["test"]
    assert np.bincount(read["tenant"][:]).tolist() == [100, 100]
    for number in range(2):
        labels = np.array(read["label"][:])[np.array(read["tenant"][:]) == number]
        assert stats.chisquare(np.bincount(labels, minlength=3)).pvalue > MIN_P


def test_without_a_validation_split_it_is_the_same_sample_as_test(arena):
    files = {"train": FILES["train"], "test": FILES["test"]}
    row = {**ROW, "source": {"kind": "files", "files": files}, "select_on": "test"}
    use(row=row, sample_sizes={**READS, "validation": 100})
    assert sample("validation") == sample("test")
    assert {label for label, *_ in sample("test")} == {0, 1, 2}


def test_a_refit_is_refused_without_a_validation_split_where_it_is_set(arena):
    files = {"train": FILES["train"], "test": FILES["test"]}
    row = {**ROW, "source": {"kind": "files", "files": files}, "select_on": "test"}
    use(row=row, sample_sizes={**READS, "validation": 100})
    check([small.cell("moods: head")])
    reason = "train.refit: True has no effect: the data have no validation split"
    tasks = {"moods": {"sample_sizes": READS, "params": {"train.refit": True}}}
    small.use(tasks=tasks)
    refused(lambda: check([small.cell("moods: head")]), says=f"pipeline/arena.yaml: small.tasks.moods: {reason}")
    methods = {"head": {"adapter": "head_only", "params": {"train.refit": True}}}
    small.use(tasks={"moods": {"sample_sizes": READS}}, methods=methods)
    refused(lambda: check([small.cell("moods: head")]), says=f"pipeline/arena.yaml: small.methods.head: {reason}")


CUT = {
    **ROW,
    "source": {"kind": "files", "files": {"train": FILES["train"]}},
    "split": {"validation": 0.2, "test": 0.2},
}


def test_a_task_may_keep_the_order_of_its_files(arena):
    use()
    by_hash = small.training("moods: head")
    assert by_hash.by_hash == ("validation", "test")
    small.use(tasks={"moods": {"sample_sizes": READS, "order": "file"}})
    in_file = small.training("moods: head")
    assert in_file.key != by_hash.key
    assert {label for label, *_ in sample("test")} == {0}  # the file is sorted, so this is what the key must tell apart


@pytest.mark.parametrize(("row", "sample_sizes"), [(CUT, READS), (ROW, {**READS, "validation": "all", "test": "all"})])
def test_the_order_of_files_is_refused_where_nothing_depends_on_it(row, sample_sizes, arena):
    use(row=row, sample_sizes=sample_sizes)
    assert small.training("moods: head").by_hash == ()
    small.use(tasks={"moods": {"sample_sizes": sample_sizes, "order": "file"}})
    says = "pipeline/arena.yaml: small.tasks.moods.order: file changes nothing: "
    refused(lambda: check([small.cell("moods: head")]), says=says)


def test_the_first_rows_of_what_is_cut_from_train_are_those_of_the_cut(arena):
    use(row=CUT)
    whole = datasets.load(small.training("moods: head").view.dataset, "moods").splits
    labels = {split: whole[split]["label"][: READS[split]].tolist() for split in ("train", "test")}
    assert {split: [label for label, *_ in sample(split)] for split in labels} == labels


def test_of_the_committed_presets_these_tasks_read_a_sample_of_a_split_that_their_source_provides(monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    found = {}
    for name in workspace.read_yaml(workspace.ROOT / preset.PATH):
        cells = {cell.task: cell for cell in plan.cells(name, preset.load(name))}
        found[name] = [task for task, cell in cells.items() if cell.first().by_hash]
    assert found == {
        "offline": [],
        "kinds": ["stsb"],
        "base": [],
        "paper": [],
        "tenants": [],
        "tenant-heads": [],
        "generate": [],
    }
