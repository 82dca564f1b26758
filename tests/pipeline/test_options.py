"""Each option of params.yaml changes what the stages write, and options that have nothing to do with each other meet.

An option is changed in a copy of a workspace after all stages; the stages that read it run again, and their outputs are
compared with those before. Cards are left out, since they list all options.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tests import reference
from tests.helpers import change_params, digests, edit, merge, printed, read_json, read_table, run_stages, write

QUICK = {"evaluate": {"regression_baseline": "none"}}
OUTPUTS = {
    "tokenize": ["artifacts/tokens", "reports/tokenize"],
    "factorize_init": ["artifacts/init", "reports/factorize_init"],
    "train": ["artifacts/adapter", "reports/train"],
    "evaluate": ["reports/evaluate"],
}
CARDS = ("README.md", "card.md")
DENSE = {"lsr": {"rank_shape": [3], "separation_rank": "auto", "train": "all"}}
READS = {"lsr": {"init": "gradient", "init_examples": 8, "init_head_steps": 2}}
WARM = {"lsr": {"init": "warm_start", "init_examples": 8, "init_head_steps": 2}}
BUDGET = {"adapter": "directions", "directions": {"init_examples": 8}}
HELD = {"train": {"epochs": 6, "head_learning_rate": 1.0}, "lsr": {"learning_rate": 1.0}}  # scores fall


def of(adapter, section=None):
    """Return the parameters of another method."""
    return {"adapter": adapter} | ({adapter: section} if section else {})


CASES = [  # the option, its value, and other parameters on both sides
    ("data", "three", {}),
    ("model", "models/other", {}),
    ("seed", 1, {}),
    ("adapter", "lora", {}),
    ("adapter", "head_only", {}),
    ("adapter", "full", {}),
    ("tokenize.max_length", 12, {}),
    ("train.epochs", 2, {}),
    ("train.patience", 1, HELD),
    ("train.batch_size", 16, {}),
    ("train.head_learning_rate", 0.01, {}),
    ("train.weight_decay", 0.9, {}),
    ("train.warmup_ratio", 0.9, {}),
    ("train.class_weights", "balanced", {}),
    ("train.precision", "bf16", {}),
    ("evaluate.resamples", 300, {}),
    ("evaluate.regression_baseline", 20, {}),
    ("lsr.rank_shape", [2, 1], {}),
    ("lsr.separation_rank", 3, {}),
    ("lsr.share", "layers", DENSE),
    ("lsr.train", "core", DENSE),
    ("lsr.core", "diagonal", DENSE),
    ("lsr.init", "principal", {}),
    ("lsr.init", "gradient", {}),
    ("lsr.init", "lora_update", {}),
    ("lsr.init", "warm_start", {}),
    ("lsr.alpha", 3.0, {}),
    ("lsr.init_examples", 16, READS),
    ("lsr.init_head_steps", 4, READS),
    ("lsr.init_epochs", 2, WARM),
    ("lsr.dropout", 0.5, {}),
    ("lsr.target_modules", ["query"], {}),
    ("lsr.layers", [1], {}),
    ("lsr.learning_rate", 0.1, {}),
    ("directions.total_directions", 6, BUDGET),
    ("full.learning_rate", 0.001, of("full")),
    ("lora.target_modules", ["query"], of("lora")),
    ("lora.learning_rate", 0.1, of("lora")),
    ("lora.r", 2, of("lora")),
    ("lora.lora_alpha", 1, of("lora")),
    ("lora.lora_dropout", 0.5, of("lora")),
    ("lora.use_dora", True, of("lora")),
    ("lora.init_lora_weights", "pissa", of("lora")),
    ("krona.r", 2, of("krona")),
    ("kadaptation.n", 4, of("kadaptation")),
    ("vera.d_initial", 0.5, of("vera")),
    ("unilora.theta_d_length", 20, of("unilora")),
    ("bitfit.bias", "none", of("bitfit")),
    ("peft.r", 4, of("peft")),
]
FIRST = {"tokenize": 0, "data": 0, "model": 0, "train": 2, "evaluate": 3}  # the stage that reads a section; others: 1


def outputs(stage):
    """Return the digests of what a stage has written."""
    found = digests(*map(Path, OUTPUTS[stage]))
    return {path: digest for path, digest in found.items() if not path.endswith(CARDS)}


@pytest.mark.parametrize(("option", "value", "beside"), CASES, ids=[f"{option}={value}" for option, value, _ in CASES])
def test_an_option_changes_what_the_stages_write(copied, option, value, beside):
    folder = copied("two", "bert", **merge(QUICK, beside))
    section, _, key = option.partition(".")
    if option == "model":
        shutil.copytree("models/bert", value)
        edit(folder / value / "model.safetensors", lambda tensors: {name: 2 * one for name, one in tensors.items()})
    change_params(folder, **{section: {key: value} if key else value})
    for stage in list(OUTPUTS)[FIRST.get(section, 1) :]:
        before = outputs(stage)
        run_stages(folder, stage)
        if outputs(stage) != before:
            return
    pytest.fail("it changes nothing")


def test_the_number_of_new_tokens_changes_what_is_written(copied):
    folder = copied("completion", "llama", evaluate={"max_new_tokens": 6})
    before = outputs("evaluate")
    change_params(folder, evaluate={"max_new_tokens": 1})
    run_stages(folder, "evaluate")
    assert outputs("evaluate") != before


@pytest.mark.parametrize("size", [128, 7])
def test_evaluate_reads_as_many_examples_at_once_as_its_batch_size(copied, size):
    folder = copied("two", "bert", **QUICK)
    counts = set()

    def note(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            counts.add(len(inputs[0]))

    change_params(folder, evaluate={"batch_size": size})
    hook = register_module_forward_pre_hook(note)
    run_stages(folder, "evaluate")
    hook.remove()
    examples = read_json(folder / "reports/evaluate/metrics.json")["details"][0]["examples"]
    assert max(counts) == min(size, examples)


def test_a_model_is_compiled_if_that_is_asked_for(copied, monkeypatch):
    folder = copied("two", "bert", **QUICK)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    run_stages(folder, "train")
    assert not compiled
    change_params(folder, train={"compile": True})
    run_stages(folder, "train")
    assert compiled


# Runs from texts to answers, in which options of every kind meet.

FORMS = {
    "sums": {"rank_shape": [2, 2], "separation_rank": 2},
    "dense": {"rank_shape": [3], "separation_rank": 1},
    "cores": {"rank_shape": [3], "separation_rank": 1, "train": "core"},
    "shared cores": {"rank_shape": [3], "separation_rank": 1, "train": "core", "share": "layers"},
    "shared": {"rank_shape": [3], "separation_rank": 1, "train": "all", "share": "layers"},
}
WRITING = {"evaluate": {"max_new_tokens": 4}, "tokenize": {"max_length": 48}}
EXAMPLES = {"init_examples": 16, "init_head_steps": 2}
BF16 = {"train": {"precision": "bf16"}}
ALL_LAYERS = {"target_modules": "all-linear"}
RUNS = [  # the data, the architecture, the form, the section and other parameters
    ("two", "roberta", "sums", {"init": "random", "dropout": 0.1}, {}),
    ("three", "gpt2", "dense", {"init": "principal"} | ALL_LAYERS, {}),
    ("pairs", "distilbert", "cores", {"init": "gradient"} | EXAMPLES, BF16),
    ("multi_label", "llama", "shared cores", {"init": "lora_update", "layers": [1]} | EXAMPLES, {}),
    ("number", "bert", "shared", {"init": "warm_start", "dropout": 0.1} | EXAMPLES, {}),
    ("tenants", "qwen2", "shared", {"init": "gradient"} | ALL_LAYERS | EXAMPLES, {}),
    ("completion", "gpt2", "shared", {"init": "warm_start"} | EXAMPLES, BF16),
    ("number", "modernbert", "sums", {"init": "gradient"} | ALL_LAYERS | EXAMPLES, {}),
    ("multi_label", "deberta-v2", "dense", {"init": "warm_start", "layers": [0]} | EXAMPLES, {}),
]
OTHERS = [  # methods of others, and one parameter per direction
    ("three", "distilbert", "krona", {}),
    ("pairs", "bert", "kadaptation", {}),
    ("number", "distilbert", "vera", {}),
    ("tenants", "bert", "lora", {}),
    ("completion", "gpt2", "bitfit", {}),
    ("two", "llama", "peft", {"type": "OFT", "r": 0, "oft_block_size": 4}),
    ("number", "bert", "directions", {"init_examples": 16, "init_head_steps": 2}),
]
MEETINGS = [
    (data, architecture, {"lsr": FORMS[form] | section, **other}) for data, architecture, form, section, other in RUNS
]
MEETINGS += [(data, architecture, of(method, section)) for data, architecture, method, section in OTHERS]


@pytest.mark.parametrize(
    ("data", "architecture", "params"), MEETINGS, ids=[f"{data}-{architecture}" for data, architecture, _ in MEETINGS]
)
def test_options_go_together_from_texts_to_answers(copied, data, architecture, params):
    quick = WRITING if data == "completion" else QUICK
    copied(data, architecture, **merge(quick, params))
    check_tensors(params)
    scored = read_table(Path("reports/evaluate/predictions.csv"))
    columns = [name for name in ("prompt", "text", "text_pair") if name in scored[0]]
    asked = [{name: row[name] for name in columns} | {"shop": row.get("tenant", "")} for row in scored]
    words = ["--file", write(Path("asked.csv"), asked), "--column", *columns]
    words += ["--max-new-tokens", 4] if data == "completion" else []
    answers = read_table(printed("pipeline.predict", *words))
    for answer, row in zip(answers, scored, strict=True):
        if data == "completion":
            assert answer["answer"] == row["said"]
        elif data == "number":
            assert float(answer["number"]) == pytest.approx(float(row["predicted"]), abs=0.00051)
        else:
            assert answer["label"] == row["predicted"]


def check_tensors(params):
    """All that is trained has moved, and nothing else."""
    before = reference.tensors_of(Path("artifacts/init"))
    after = reference.tensors_of(Path("artifacts/adapter"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    details = read_json(Path("reports/evaluate/metrics.json"))
    trained = details["adapter_trained"] + details["details"][0].get("head_parameters", 0)
    assert sum(after[name].numel() for name in moved) == trained
