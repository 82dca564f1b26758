"""The official files of GLUE and SuperGLUE, in each of their formats; from the hub come the same examples."""

import pytest

from pipeline import evaluation, params
from pipeline import tasks as kinds
from pipeline.core import artifacts
from pipeline.data import base_models, datasets, tokens
from pipeline.methods import adapters
from tests import tasks, workspace
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run


@pytest.fixture
def row_of(tmp_path, monkeypatch):
    """A function from a task to its row, from files whose rows come once in each split; it cuts no split."""
    monkeypatch.chdir(tmp_path)
    workspace.copy_committed()

    def build(task):
        tasks.use_files(tmp_path, task, train=1, test=1)
        return params.load_row("data", task).model_copy(update={"cut": {}, "select_on": "test"})

    return build


def tables(row):
    return {split: table.to_pandas() for split, table in datasets.load(row, "mine").splits.items()}


@pytest.mark.parametrize("task", tasks.FORMS)
def test_the_official_files_are_read(task, row_of):
    found = tables(row_of(task))
    for split in ("train", "test"):
        examples = list(found[split].itertuples(index=False, name=None))
        named = [[str(value).replace("SPLIT", f"{split} 0") for value in one] for one in tasks.FORMS[task].examples]
        in_order = list if split == "test" else sorted  # train is ordered by the hash of the texts
        assert in_order([[str(value) for value in one] for one in examples]) == in_order(named)


def test_groups_are_cut_together_and_scored_while_training_as_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path, data="multirc", train={"epochs": 1}))
    tasks.use_files(tmp_path, "multirc", train=60, test=12)
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    texts = {split: set(tokens.load_texts(split)["text"]) for split in datasets.SPLITS}
    assert len(texts["validation"]) > 1
    assert not texts["train"] & texts["validation"]
    view, split = params.load(params.TrainView), tokens.load_tokens("validation")
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=False)
    task, tokenizer = kinds.of(view.dataset), base_models.load_tokenizer(view.base_model)
    outputs = evaluation.outputs(task, model, split, task.collator(tokenizer), 16)
    found = task.scores(evaluation.outcome(outputs, split))
    assert found["f1"] == pytest.approx(report(artifacts.TRAIN_METRICS)["best_score"], abs=1e-6)
    metrics = report(artifacts.EVALUATE_METRICS)
    assert metrics["examples"] == 3 * 12
    assert metrics["exact_match_low"] <= metrics["exact_match"] <= metrics["exact_match_high"]
