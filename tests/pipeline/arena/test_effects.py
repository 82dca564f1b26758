"""What a preset sets changes what is trained, scored or compared, or is refused in a line: nothing is ignored."""

import hashlib
from contextlib import chdir

import numpy as np
import pytest
import torch
from safetensors.torch import save
from scipy.stats import pearsonr

from pipeline.arena import measure as measuring
from pipeline.arena import plan, preset
from pipeline.arena.execution import check
from pipeline.compare.comparison import compare
from pipeline.params.sections import EvaluateParams, TenantsParams, TokenizeParams, TrainParams
from tests import kit, workspace
from tests.kit import refused
from tests.pipeline.arena import small
from tests.pipeline.compare import records as compared

LORA = "glue: LoRA r=1"
READS = {"train": 47}  # so that classes have other weights than 1


def measured(monkeypatch, title=LORA):
    """What is measured of a training run, with the weights that it ends with; not what its key says."""
    weights = []

    def sizes_of(model, task, training):
        weights.append(
            hashlib.sha256(save({name: w.contiguous() for name, w in model.state_dict().items()})).hexdigest()
        )
        return usual(model, task, training)

    usual = measuring.sizes_of
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "sizes_of", sizes_of)
        record = measuring.measure(small.training(title))
    assert record.status == "finished", record.reason
    return record.validation, record.test, record.predicted, weights


# Other values of the keys of params.yaml: None if another adapter or other scores come of it, or what a refusal says.
SHORT = {"train.epochs": 6, "train.head_learning_rate": 1.0, "lora.learning_rate": 1.0}  # after which scores fall
KEYS = {
    "data": [({}, "ratings", "params: data is set by the arena itself")],
    "model": [({}, "tiny", "params: model is set by the arena itself")],
    "seed": [({}, 3, "params: seed is set by the arena itself")],
    "adapter": [({}, "lora", "params: adapter is set by the arena itself")],
    "tokenize.max_length": [({}, 12, None)],
    "train.epochs": [({}, 1, None), ({}, "auto", "small: params: train.epochs: a number is needed")],
    "train.extend_epochs": [({}, "auto", None)],
    "train.patience": [
        (SHORT, 1, None),
        (
            {},
            1,
            "small.methods.LoRA r=1: train.patience: 1 has no effect: it ends training after 2 epochs at the earl",
        ),
    ],
    "train.refit": [({}, True, None)],
    "train.batch_size": [({}, 8, None)],
    "train.processes": [({}, 2, "params: train.processes is set by the arena itself")],
    "train.head_learning_rate": [({}, 0.01, None)],
    "train.weight_decay": [({}, 0.9, None)],
    "train.warmup_ratio": [({}, 0.9, None)],
    "train.class_weights": [({}, "balanced", None)],  # of 47 rows, so that a class has fewer
    "train.precision": [({}, "bf16", None), ({}, "fp16", "small.tasks.glue: train.precision: fp16 needs a GPU")],
    "train.report_to": [({}, ["tensorboard"], "params: train.report_to has no effect: the arena does not read it")],
    "tenants.shared_adapter": [({}, "models/shared", "params: tenants.shared_adapter is set by the arena itself")],
    "tenants.head": [({}, "own", "params: tenants.head has no effect: no head of tenants is trained")],
    "tenants.precision": [({}, "4bit", "params: tenants.precision has no effect: the arena does not read it")],
    "evaluate.batch_size": [({}, 7, "params: evaluate.batch_size has no effect: the arena does not read it")],
    "evaluate.resamples": [({}, 300, "params: evaluate.resamples has no effect: the arena does not read it")],
    "evaluate.regression_baseline": [
        ({}, 7, "params: evaluate.regression_baseline has no effect: the arena does not read it")
    ],
    "evaluate.max_new_tokens": [({}, 7, "params: evaluate.max_new_tokens has no effect: the arena does not read it")],
    "lora.r": [({}, 3, None)],
    "lora.lora_alpha": [({}, 5, None)],
    "vera.r": [({}, 3, "small: params: vera.r has no effect: no method has this adapter")],
    "lsr.nope": [({}, 3, "lsr.nope: no such key")],
}
CASES = [(key, *case) for key, cases in KEYS.items() for case in cases]
SECTIONS = {"tokenize": TokenizeParams, "train": TrainParams, "tenants": TenantsParams, "evaluate": EvaluateParams}


def test_every_key_of_a_section_of_all_methods_has_a_case():
    keys = {f"{name}.{field}" for name, schema in SECTIONS.items() for field in schema.model_fields}
    assert keys - KEYS.keys() == {"train.compile", "tokenize.standardize_labels"}  # see below


def use(values):
    """Write the preset with values of params, and without those of the method that would come before them."""
    lora = {key: value for key, value in small.SMALL["methods"]["LoRA r=1"]["params"].items() if key not in values}
    content = workspace.merged(small.SMALL, {"params": values, "sample_sizes": READS})
    methods = content["methods"] | {"LoRA r=1": {"adapter": "lora", "params": lora}}
    kit.write(preset.PATH, {"small": content | {"methods": methods}})


@pytest.mark.parametrize(("key", "beside", "value", "says"), CASES, ids=[f"{key}={case[1]}" for key, *case in CASES])
def test_a_key_of_params_changes_what_is_measured_or_is_refused(arena, monkeypatch, key, beside, value, says):
    use(beside | {key: value})
    if says:
        title = "glue: LSR shared r=2" if key.startswith("lsr.") else LORA
        refused(lambda: check(plan.cells("small", preset.load("small"), [title])), says=says)
        return
    changed = measured(monkeypatch)
    use(beside)
    assert measured(monkeypatch) != changed


def test_a_task_of_numbers_may_leave_them_in_their_own_units(arena, monkeypatch):
    standardized = measured(monkeypatch, "ratings: LoRA r=1")
    value = {"tokenize.standardize_labels": "none"}
    kit.write(preset.PATH, {"small": workspace.merged(small.SMALL, {"tasks": {"ratings": {"params": value}}})})
    assert measured(monkeypatch, "ratings: LoRA r=1") != standardized
    kit.write(preset.PATH, {"small": workspace.merged(small.SMALL, {"tasks": {"glue": {"params": value}}})})
    says = "small.tasks.glue: tokenize.standardize_labels: none has no effect: the labels are not numbers to predict"
    refused(lambda: check(plan.cells("small", preset.load("small"), [LORA])), says=says)


def test_models_are_compiled_if_a_preset_says_so(arena, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    use({})
    measured(monkeypatch)
    assert not compiled
    use({"train.compile": True})
    measured(monkeypatch)
    assert compiled


def method(**changes):
    return {"methods": {"odd": {"adapter": "lsr"} | changes}}


RANDOM = {"lsr.init": "random", "lsr.train": "factors"}
IDLE = [
    (method(params={"lora.r": 2}), "methods.odd: params: lora.r has no effect: the method's adapter is lsr"),
    (
        method(features="mean"),
        "methods.odd: adapter: lsr has no effect: features are in place of it; set it to head_only",
    ),
    (method(adapter="head_only", features="mean", trained=False), "methods.odd: trained: false has no effect"),
    (
        method(trained=False, params={"train.epochs": 3}),
        "methods.odd: params: train.epochs has no effect: the method is",
    ),
    (
        method(adapter="head_only", features="mean", params={"train.precision": "bf16"}),
        "methods.odd: params: train.precision has no effect: the method is not trained",
    ),
    (method(seeds=3), "small: methods: odd: seeds: must be at most 2, as many as seeds has, got 3"),
    ({"tuning": {"seeds": 3}}, "small: tuning: seeds: must be at most 2, as many as seeds has, got 3"),
    (
        {"sample_sizes": {"max_new_tokens": 3}},
        "small: sample_sizes: max_new_tokens has no effect: the data have no completions",
    ),
    (
        {"tasks": {"glue": {"sample_sizes": {"max_new_tokens": 3}}}},
        "small: tasks: glue: sample_sizes: max_new_tokens has no effect",
    ),
    ({"tasks": {"glue": {"params": {"vera.r": 3}}}}, "small: tasks: glue: params: vera.r has no effect"),
    ({"tasks": {"glue": {"kind": "hub"}}}, "small: tasks: glue: kind: hub has no effect: it is the kind of the row"),
    ({"tasks": {"glue": {"kind": "files"}}}, "small: tasks: glue: kind: the row's source describes no files"),
    ({"files": {"rating.csv": "0" * 64}}, "small: files: rating.csv has no effect: no task names this file; did you"),
    (
        method(params=RANDOM | {"lsr.init_examples": 5}),
        "small.methods.odd: lsr.init_examples: 5 has no effect: only init: ",
    ),
    (method(params=RANDOM | {"lsr.init_head_steps": 5}), "small.methods.odd: lsr.init_head_steps: 5 has no effect"),
    (
        method(params={"lsr.layers": [99]}),
        "small.methods.odd: lsr: layers_to_transform: no adapted layer has the index 99",
    ),
    (
        method(params={"lsr.target_modules": "(.*)*(.*)*query!"}),
        "small.methods.odd: lsr: target_modules: '(.*)*(.*)*quer",
    ),
    (
        method(adapter="krona", params={"krona.r": 0}),
        "small.methods.odd: krona: r: must be a whole number of at least 1",
    ),
    (
        method(adapter="krona", params={"krona.rank_dropout": 1.0}),
        "small.methods.odd.krona: rank_dropout: must be at least 0 and below 1, got 1.0",
    ),
    (
        method(adapter="vera", params={"vera.d_initial": 1e308}),
        "small.methods.odd.vera: d_initial: must be from -4,294,967,296 to 4,294,967,296, got 1e+308",
    ),
    (method(params={"train.precision": "fp16"}), "small.methods.odd: train.precision: fp16 needs a GPU, and there"),
    (
        {"tasks": {"glue": {"params": {"train.epochs": 7, "train.extend_epochs": "auto"}}}},
        "small.tasks.glue: train.epochs: 7 has no effect: train.extend_epochs: auto trains for 30 epochs of these",
    ),
    (
        method(tasks=["glue"], params={"train.extend_epochs": "auto", "train.epochs": 30}),
        "small.methods.odd: on glue: train.epochs: 30 has no effect: train.extend_epochs: auto trains for 30 epochs",
    ),
    (
        {"tasks": {"glue": {"sample_sizes": {"max_new_tokens": "all"}}}},
        "pipeline/arena.yaml: small.tasks.glue.sample_sizes: max_new_tokens: must be a number of tokens, got all",
    ),
    (
        {"tasks": {"ratings": {"params": {"train.class_weights": "balanced"}}}},
        "small.tasks.ratings: train.class_weights: balanced needs a label of classes",
    ),
]


@pytest.mark.parametrize(("changes", "says"), IDLE)
def test_what_would_have_no_effect_is_refused_before_anything_runs(arena, changes, says):
    small.use(**changes)
    refused(lambda: check(plan.cells("small", preset.load("small"))), says=says)


# The fields of a preset, with other values. Their effect is on keys, on what is tried, or on the comparison.
BASE = {
    "tasks": {"rte": {}, "cola": {}},
    "methods": {name: compared.PRESET["methods"][name] for name in ("head alone", "LSR 200", "LoRA r=1")},
    "seeds": [0, 1, 2],
    "averages": {"main": ["rte", "cola"]},
    "quantized_seeds": [1],
    "hypotheses": [{"method": "LSR 200", "expected": "better", "versus": "head alone", "on": "main"}],
    "tuning": {"rates": [0.25, 1.0, 4.0], "extra_rates": 0, "seeds": 1, "head_rates": []},
    "margin": 1.0,
}
HYPOTHESIS = BASE["hypotheses"][0]
FIELDS = {
    "model": {"model": "roberta-base"},
    "tasks": {"tasks": {"rte": {}, "cola": {}, "stsb": {}}},
    "tasks.row": {"tasks": {"rte": {}, "cola": {"row": "mrpc"}}},
    "tasks.kind": {
        "tasks": {"rte": {}, "cola": {"kind": "files"}},
        "files": {
            "data/glue/CoLA/train.tsv": "0" * 64,
            "data/glue/CoLA/dev.tsv": "0" * 64,
        },
    },
    "tasks.params": {"tasks": {"rte": {}, "cola": {"params": {"train.epochs": 1}}}},
    "tasks.sample_sizes": {"tasks": {"rte": {}, "cola": {"sample_sizes": {"train": 5}}}},
    "tasks.order": {"tasks": {"rte": {}, "cola": {"order": "file"}}},
    "tasks.unseen": {"tasks": {"rte": {}, "cola": {"unseen": {"movie-reviews": ["bad", "good"]}}}},
    "seeds": {"seeds": [0, 1, 3]},
    "baseline": {"baseline": "head alone"},
    "tuning.rates": {"tuning": {"rates": [0.25, 1.0, 2.0]}},
    "tuning.extra_rates": {"tuning": {"rates": [1.0, 4.0], "extra_rates": 2}},
    "tuning.seeds": {"tuning": {"seeds": 2}},
    "tuning.epochs": {"tuning": {"epochs": [2.0]}},
    "tuning.head_rates": {"tuning": {"head_rates": [2.0]}},
    "sample_sizes.train": {"sample_sizes": {"train": 5}},
    "sample_sizes.validation": {"sample_sizes": {"validation": 5}},
    "sample_sizes.test": {"sample_sizes": {"test": 5}},
    "sample_sizes.max_tokens": {"sample_sizes": {"max_tokens": 5}},
    "sample_sizes.max_new_tokens": {"sample_sizes": {"max_new_tokens": 5}},
    "params": {"params": {"train.epochs": 1}},
    "methods": {"methods": {"LoRA r=8": compared.PRESET["methods"]["LoRA r=8"]}},
    "methods.adapter": {"methods": {"head alone": {"adapter": "full"}}},
    "methods.params": {"methods": {"LoRA r=1": {"params": {"lora.r": 2}}}},
    "methods.tasks": {"methods": {"head alone": {"tasks": ["rte"]}}, "hypotheses": []},
    "methods.seeds": {"methods": {"head alone": {"seeds": 2}}},
    "methods.trained": {"methods": {"LSR 200": {"trained": False}}},
    "methods.features": {"methods": {"head alone": {"features": "mean"}}},
    "averages": {"averages": {"all": ["rte", "cola"]}, "hypotheses": []},
    "files": {"files": {"data/glue/CoLA/train.tsv": "0" * 64}},
    "margin": {"margin": 40.0},
    "quantized_seeds": {"quantized_seeds": [2]},
    "hypotheses": {"hypotheses": []},
    "hypotheses.method": {"hypotheses": [HYPOTHESIS | {"method": "LoRA r=1"}]},
    "hypotheses.expected": {"hypotheses": [HYPOTHESIS | {"expected": "equivalent"}]},
    "hypotheses.versus": {"hypotheses": [HYPOTHESIS | {"versus": "LoRA r=1"}]},
    "hypotheses.on": {"hypotheses": [HYPOTHESIS | {"on": "rte"}]},
}
INNER = {
    "tasks": preset.TaskChanges,
    "tuning": preset.Tuning,
    "sample_sizes": preset.SampleSizes,
    "methods": preset.Method,
    "hypotheses": preset.Hypothesis,
}


def test_every_field_of_a_preset_has_a_case():
    inner = {f"{name}.{field}" for name, schema in INNER.items() for field in schema.model_fields}
    assert FIELDS.keys() == (preset.Preset.model_fields.keys() - {"tuning", "sample_sizes"}) | inner


def comparison(values):
    """What is run of a preset, in which precisions, and what its comparison is; or the line that refuses it."""
    content = workspace.merged({**compared.PRESET, **BASE}, values)
    kit.write(preset.PATH, {"small": content})
    chosen = preset.load("small")
    planned = []

    def went(one):
        planned.append((one.key, one.is_quantized))
        scores = {"bytes": 200, "validation": 0.5, "test": {"accuracy": 0.5}}
        return compared.went(one, quantized={"2bit": scores} if one.is_quantized else {})

    records = compared.trainings(chosen, went)
    return planned, compare("small", records, chosen, 100)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A folder with labels of the tasks, and what is run and compared of the preset there."""
    folder = tmp_path_factory.mktemp("usual")
    with chdir(folder):
        compared.prepare(folder)
        return folder, comparison({})


REFUSED = {
    "tasks.unseen": "small: tasks: cola: unseen has no effect: the data have no column of tenants",
    "tasks.order": "small.tasks.cola.order: file changes nothing",
    "sample_sizes.max_new_tokens": "small: sample_sizes: max_new_tokens has no effect",
    "files": "small: files: data/glue/CoLA/train.tsv has no effect: no task names this file",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_preset_changes_what_is_run_or_compared_or_is_refused(usual, monkeypatch, field):
    folder, before = usual
    monkeypatch.chdir(folder)
    if field in REFUSED:
        refused(comparison, FIELDS[field], says=f"pipeline/arena.yaml: {REFUSED[field]}")
    else:
        assert comparison(FIELDS[field]) != before


@pytest.mark.parametrize("kind", [int, bool, np.float32])
def test_answers_in_records_keep_six_digits_of_their_range(kind):
    if kind is not np.float32:
        assert measuring.round_answers(np.array([1, 0, 1], kind)) == [1.0, 0.0, 1.0]
        return
    answers = np.array([350_123.38, 350_100.0, 350_100.47], kind)
    assert pearsonr(measuring.round_answers(answers), answers.astype(float)).statistic == pytest.approx(1, abs=1e-10)
    assert measuring.round_answers(np.full(3, 2.5, kind)) == [2.5] * 3
    assert measuring.round_answers(np.array([3.14159265, 1.0], kind)) == [3.14159, 1.0]
