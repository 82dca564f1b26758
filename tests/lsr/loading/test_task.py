"""What task.json may hold: fields at their limits are read as they are written, and the pipeline allows no more."""

import json
from types import SimpleNamespace

import pytest

from lsr.loading.contents import read_task
from lsr.serve.admission import vocabulary_of
from lsr_onnx import task
from lsr_onnx.errors import InputError
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks import prompts
from tests.kit import refused
from tests.old_tiny.models import tiny

AT_LIMITS = {
    "kind": "x" * 200,
    "labels": [f"{at:06}" + "é" * 97 for at in range(320)],  # 200 bytes each: 64,000 together
    "tenant": "x" * 200,
    "thresholds": [1.0] * 320,
    "temperatures": [10.0] * 320,
    "max_length": 2**31 - 1,
    "columns": ["x" * 100_000, "é" * 100_000],
    "template": "x" * 100_000,
    "stop_token_ids": [2**31 - 1] * 16,
    "more": "x" * 3_900,
}


def test_a_task_at_all_limits_is_read_as_it_is(tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(AT_LIMITS, ensure_ascii=False), encoding="utf-8")
    assert read_task(tmp_path) == AT_LIMITS
    for labels in ([f"{at:04}" for at in range(10_000)], ["x" * 200, ""]):
        assert task.validate_task_info({"labels": labels}, "here") == {"labels": labels}


@pytest.mark.parametrize("field", AT_LIMITS)
def test_a_little_more_is_refused_with_the_field(field):
    value = AT_LIMITS[field]
    more = (
        value + 1
        if isinstance(value, int)
        else [*value, value[-1]]
        if isinstance(value, list)
        else f"{value}{'x' * 200}"
    )
    refused(task.validate_task_info, AT_LIMITS | {field: more}, "here", says=field)


def test_tokens_that_end_an_answer_are_in_the_vocabulary_of_the_base_model():
    model = tiny("gpt2")
    last = model.get_input_embeddings().num_embeddings - 1
    task.check_stop_tokens({"stop_token_ids": [0, last]}, vocabulary_of(model))
    refused(
        task.check_stop_tokens,
        {"stop_token_ids": [last + 1]},
        vocabulary_of(model),
        kind=ValueError,
        says=f"from 0 to {last}",
    )


@pytest.mark.parametrize("labels", [("x" * 201, "b"), tuple(f"{at:05}" + "é" * 90 for at in range(400))])
def test_the_pipeline_writes_no_more(labels, tmp_path):
    written = AdapterTask(kind="classes", columns=("text",), labels=labels, max_length=9)
    refused(written.write, tmp_path, kind=InputError, says="task.json: labels has ")
    assert not list(tmp_path.iterdir())
    long = SimpleNamespace(get_chat_template=lambda: "x" * 100_001, chat_template="x", eos_token_id=0)
    refused(prompts.Prompts, long, says="the tokenizer's chat template has 100,001 characters; at most 100,000 are")


@pytest.mark.parametrize(
    ("temperatures", "says"),
    [
        ([0.0999], "temperatures must be a list of numbers from 0.1 to 10, got [0.0999]"),
        ([10.1], "temperatures must be a list of numbers from 0.1 to 10, got [10.1]"),
        ([float("nan")], "temperatures must be a list of numbers from 0.1 to 10, got [nan]"),
        ([True], "temperatures must be a list of numbers from 0.1 to 10, got [True]"),
        (1.5, "temperatures must be a list of numbers from 0.1 to 10, got 1.5"),
        ([1.5, 1.5], "temperatures must be one for all, or one for each label or tenant, got [1.5, 1.5]"),
    ],
)
def test_temperatures_are_finite_and_as_many_as_labels_or_tenants(temperatures, says):
    labels = ["a", "b", "c"]
    refused(task.validate_task_info, {"labels": labels, "temperatures": temperatures}, "here", says=says)
    refused(task.validate_task_info, {"tenants": {"x": labels}, "temperatures": [1.5, 1.5]}, "here", says="one for all")
    for right in ([1.5], [1, 2.5, 0.1]):
        assert task.validate_task_info({"labels": labels, "temperatures": right}, "here")["temperatures"] == right


def test_a_threshold_is_a_probability_of_the_second_of_two_labels():
    two = {"labels": ["a", "b"]}
    assert task.validate_task_info(two | {"threshold": 0.3}, "here")["threshold"] == 0.3
    for value in (1.1, float("nan"), True, "0.3"):
        refused(
            task.validate_task_info, two | {"threshold": value}, "here", says="threshold must be a probability, got "
        )
    needs = "task.json: threshold needs two labels, one of which is the answer"
    for others in ({"labels": ["a", "b", "c"]}, {}, two | {"thresholds": [0.5, 0.5]}):
        refused(task.validate_task_info, others | {"threshold": 0.3}, "here", says=needs)
