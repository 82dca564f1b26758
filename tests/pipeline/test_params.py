"""Mistakes in params.yaml, entries and commands are one line, and every method starts as PEFT or a formula says."""

import json
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PromptLearningConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from lsr import LsrConfig, quantize_adapter
from tests import rows, tiny
from tests.helpers import (
    LONGEST,
    MISTAKE,
    ROOT,
    change_params,
    edit,
    in_new_process,
    printed,
    read_json,
    read_yaml,
    refused,
    run,
    run_stages,
    write,
)

MISTAKES = read_yaml(ROOT / "tests/mistakes.yaml")
PARAMS = read_yaml(ROOT / "params.yaml")
INIT = Path("artifacts/init")


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A workspace after the stage tokenize."""
    folder = rows.make_workspace(tmp_path_factory.mktemp("tokenized") / "made")
    return run_stages(folder, "tokenize")


@pytest.fixture
def here(tokenized, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    monkeypatch.chdir(shutil.copytree(tokenized, tmp_path / "copy"))


def with_key(content, key, value):
    """Return nested values with another value of a dotted key."""
    name, _, inner = key.partition(".")
    changed = with_key(content[name], inner, value) if inner else value
    return content | {name: changed}


def set_param(key, value):
    """Change the value of a dotted key of params.yaml."""
    write(Path("params.yaml"), with_key(read_yaml(Path("params.yaml")), key, value))


# Mistakes.


@pytest.mark.parametrize(("key", "value", "says"), MISTAKES["params"])
@pytest.mark.usefixtures("here")
def test_a_mistake_in_params_is_one_line(key, value, says):
    set_param(key, value)
    assert refused("pipeline.check", says=says).startswith("params.yaml: ")


@pytest.mark.parametrize(("key", "value", "says"), MISTAKES["entries"])
@pytest.mark.usefixtures("here")
def test_a_mistake_in_the_chosen_entry_is_one_line(key, value, says):
    write(Path("data/datasets.yaml"), {"mine": with_key(rows.ENTRIES["two"], key, value)})
    change_params(Path(), data="mine")
    assert refused("pipeline.check", says=says).startswith("data/datasets.yaml: mine")


FILES = {
    "elsewhere.csv": "text,label\na,0\n",
    "data/no.xls": "",
    "data/empty.csv": "",
    "data/header.csv": "text,label\n",
    "data/narrow.csv": "text,label\na,b\nc\n",
    "data/numbers.jsonl": '{"text": 3}\n',
}


@pytest.fixture(scope="module")
def answering(trained, tmp_path_factory):
    """A workspace with an adapter and files for mistakes of commands."""
    folder = tmp_path_factory.mktemp("answering") / "copy"
    shutil.copytree(trained(), folder)
    for name, content in FILES.items():
        write(folder / name, content)
    table = [{name: row[name] for name in ("text", "size", "weather")} for row in rows.examples()]
    write(folder / "data/ambiguous.csv", table)
    write(folder / "data/same.csv", [{"text": row["text"], "label": "a"} for row in table])
    write(folder / "data/bare.csv", "".join(f"{row['text']},{row['weather']}\n" for row in table))
    os.mkfifo(folder / "data/pipe.csv")
    return folder


COMMANDS = [(command, *case) for command in ("add", "predict", "score") for case in MISTAKES[command]]


@pytest.mark.parametrize(("command", "words", "says"), COMMANDS)
def test_a_mistake_in_a_command_is_one_line_and_writes_nothing(answering, monkeypatch, command, words, says):
    monkeypatch.chdir(answering)
    refused(f"pipeline.{command}", *words, says=says)
    assert not Path("data/datasets.yaml").exists()
    assert not list(Path().glob("o.*"))


BAD_YAML = {
    "a list that does not end": ("seed: [0\nx: 1\n", "YAML"),
    "no UTF-8": (b"data: \xff\n", "YAML"),
    "no keys": ("- 1\n", "keys and values"),
    "braces": ("a:\n  b: " + "{" * 3000, "line 2"),
    "dashes": ("a:\n  " + "- " * 3000, "line 2"),
    "a value within itself": ("a: &a [*a]", "within one another"),
}


@pytest.mark.parametrize("file", ["params.yaml", "data/datasets.yaml", "models/models.yaml"])
@pytest.mark.parametrize("name", BAD_YAML)
@pytest.mark.usefixtures("here")
def test_a_file_that_is_no_yaml_is_one_line(name, file):
    content, says = BAD_YAML[name]
    write(Path(file), content)
    assert refused("pipeline.check", says=says).startswith(file)


@pytest.mark.usefixtures("here")
def test_a_missing_params_file_is_one_line():
    Path("params.yaml").unlink()
    refused("pipeline.check", says="params.yaml")


def check_lines(ended):
    """Check that a command has ended well, or in a short line for each mistake."""
    lines = ended.err.splitlines()
    assert ended.status in (0, MISTAKE), ended.err
    if ended.status:
        assert 1 <= len(lines) <= 21, ended.err
        assert all(line.startswith("params.yaml: ") and len(line) <= LONGEST for line in lines), ended.err


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates()),
    *(st.integers(-(10**30), 10**30), st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=13)),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
KEYS = [*PARAMS, *(f"{key}.{name}" for key in PARAMS if isinstance(PARAMS[key], dict) for name in PARAMS[key])]


@pytest.mark.usefixtures("here")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_key_ends_well_or_in_one_line(tokenized, key, value):
    shutil.copy(tokenized / "params.yaml", "params.yaml")
    set_param(key, value)
    check_lines(run("pipeline.check"))


ODD = [None, True, -1, 0, 3, 0.5, -1e300, 1e300, 2**70, 10**400, "", "x", "(a+)+", [], ["x"], {"a": 1}]
METHODS = [
    name.value
    for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if "target_modules" in config.__dataclass_fields__ and not issubclass(config, PromptLearningConfig)
]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.usefixtures("here")
def test_whatever_a_key_of_a_method_holds_its_stage_ends_well_or_in_one_line(method):
    chance = random.Random(method)
    keys = sorted(PEFT_TYPE_TO_CONFIG_MAPPING[method].__dataclass_fields__)
    changed = {chance.choice(keys): chance.choice(ODD) for _ in range(chance.choice((1, 1, 2)))}
    change_params(Path(), adapter="mine", mine={"type": method, "learning_rate": 0.001} | changed)
    check_lines(run("stages.factorize_init"))


HARD = "a\x1b[2J\x07\u2028\x9b\n\rb" * 15


def test_a_rejection_is_one_short_line_for_a_terminal_whoever_writes_it(here):
    for command, words in {
        "pipeline.check": [HARD],  # argparse
        "pipeline.predict": ["--adapter", HARD, "a"],
        "pipeline.score": [HARD, "artifacts/adapter"],
        "lsr": ["export", HARD, "--to", "lora", "-o", "out"],
    }.items():
        line = refused(command, *words, says="\\x1b[2J")
        assert line.startswith(f"python -m {command}") or command == "lsr"
        assert " ... " in line
    line = refused(quantize_adapter, HARD, "out", "8bit", says="\\x1b[2J")
    assert len(line) <= 300
    set_param("train.epochs", HARD)
    assert len(refused("pipeline.check", says="\\x1b[2J")) <= 300
    words = " ".join(f"word{number}" for number in range(200))
    set_param("train.epochs", words)
    line = refused("pipeline.check", says=" ... ")
    assert "word0 word1 word2 " in line
    assert " word198 word199" in line


@pytest.mark.nightly
def test_the_line_is_the_only_one_on_standard_error_though_peft_warns_before(here):
    set_param("adapter", "mine")
    set_param("mine", {"type": "BOFT", "bias": "nope", "learning_rate": 0.001})
    ended = in_new_process(Path(), "-m", "stages.factorize_init", code=MISTAKE)
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("params.yaml: mine: ")


def test_an_error_of_the_machine_is_one_line_too(here):
    ended = run("pipeline.predict", "--adapter", "x" * 300, "a")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "name too long" in ended.err


def test_all_mistakes_are_found_at_once_and_entries_of_ones_own_are_checked(here):
    change_params(Path(), seed=-1, train={"epochs": "four"})
    ended = run("pipeline.check")
    assert [line.partition(":")[2][:6] for line in ended.err.splitlines()] == [" seed:", " train"]
    change_params(Path(), seed=0, train={"epochs": 1})
    write(Path("data/datasets.yaml"), {"mine": rows.ENTRIES["two"] | {"metrics": [1]}, "two": {}, "a b": {}})
    lines = run("pipeline.check").err.splitlines()
    assert {line.split(":")[1] for line in lines} >= {" mine.metrics.0", " two"}
    write(Path("data/datasets.yaml"), {"mine": rows.ENTRIES["two"]})
    change_params(Path(), data="mine")
    assert printed("pipeline.check") == "params.yaml: OK: lsr on models/bert, mine, seed 0\n"


def test_the_code_that_a_model_brings_is_not_run(here):
    folder = Path("models/own")
    shutil.copytree("models/bert", folder)
    write(folder / "own_code.py", "from pathlib import Path\nPath('ran').touch()\n")
    mapping = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "own_code.Own")
    edit(folder / "config.json", model_type="own", auto_map=mapping)
    change_params(Path(), model=str(folder))
    refused("pipeline.check", says="models/own")
    assert not Path("ran").exists()


# Methods.

WIDTH = 24
LAYERS = 4  # query and value of two
HEAD = 2 * WIDTH + 2
BIASES = 2 * (7 * WIDTH + 40) + 2 * WIDTH + 2  # of all layers, the embedding's norm, the pooler and the head
NORMS = 2 * WIDTH * (2 * 2 + 1)
TRAINED = {  # parameters of the adapter, from the formulas of the methods
    "lsr": 2 * 2 * 2 * (4 + 6) * LAYERS,
    "lora": 2 * 4 * WIDTH * LAYERS,
    "head_only": 0,
    "krona": (4 * 4 + 6 * 6) * LAYERS,
    "kadaptation": 8**3 + 2 * WIDTH * LAYERS,
    "vera": (16 + WIDTH) * LAYERS,
    "unilora": 50,
    "directions": 12,
    "ia3": 2 * (3 * WIDTH + 40),
    "vblora": 9 * 8 + 4 * 2 * 3 * 9 * LAYERS,
    "ln_tuning": NORMS,
    "peft": 2 * WIDTH * LAYERS,
}
SECTIONS = {
    "ia3": {"type": "IA3", "learning_rate": 0.005},
    "vblora": {"type": "VBLORA", "r": 4, "num_vectors": 9, "vector_length": 8, "learning_rate": 0.001},
    "ln_tuning": {"type": "LN_TUNING", "target_modules": ["LayerNorm"], "learning_rate": 0.001},
}
NOT_ZERO = ("unilora", "vblora")  # methods that begin with a small update


def plain_base(folder):
    """Return the plain base model with the head that an adapter's folder has."""
    base = AutoModelForSequenceClassification.from_pretrained("models/bert", num_labels=2)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, parameter in base.classifier.named_parameters():
        parameter.data = tensors[f"base_model.model.classifier.{name}"]
    return base


def start(method, **section):
    """Run the stage factorize_init with a method, whose section is added to, or changed."""
    change_params(Path(), adapter=method, **{method: SECTIONS.get(method, {}) | section})
    run_stages(Path(), "factorize_init")


@pytest.mark.parametrize("method", [*TRAINED, "full", "bitfit"])
@pytest.mark.usefixtures("here")
def test_every_method_starts_as_the_base_model_with_as_many_parameters_as_its_formula_says(method):
    start(method)
    before = tiny.logits(plain_base(INIT))
    model = PeftModel.from_pretrained(plain_base(INIT), INIT, is_trainable=True)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if method == "full":
        plain = AutoModelForSequenceClassification.from_pretrained("models/bert", num_labels=2)
        assert sum(sizes.values()) == plain.num_parameters()
    elif method == "bitfit":
        biases = [name for name in sizes if name.endswith("bias")]
        assert len(biases) == len(sizes) - 1
    else:
        assert sum(sizes.values()) == TRAINED[method] + HEAD
    if method in NOT_ZERO:
        assert 0 < (tiny.logits(model) - before).abs().max() < 0.1
    else:
        torch.testing.assert_close(tiny.logits(model), before, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("here")
def test_the_update_of_kadaptation_is_a_sum_of_kronecker_products():
    start("kadaptation")
    model = PeftModel.from_pretrained(plain_base(INIT), INIT, is_trainable=True)
    tiny.stir(model).save_pretrained("stirred")
    factors = load_file("stirred/adapter_model.safetensors")
    shared = factors["base_model.kadaptation_s"]
    plain = plain_base(Path("stirred"))
    for name, u in factors.items():
        if name.endswith("kadaptation_u"):
            v = factors[name.replace("_u", "_v")]
            layer = name.removeprefix("base_model.model.").removesuffix(".kadaptation_u")
            weight = plain.get_submodule(layer).weight.data
            weight += sum(torch.kron(shared[k], u[k] @ v[k]) for k in range(8))
    expected = tiny.logits(plain)
    torch.testing.assert_close(tiny.logits(model), expected, atol=1e-5, rtol=0)
    assert (expected - tiny.logits(plain_base(Path("stirred")))).abs().max() > 0.001
    torch.testing.assert_close(tiny.logits(model.merge_and_unload()), expected, atol=1e-5, rtol=0)


HONORED = {
    "r": 3,
    "lora_alpha": 5.0,
    "lora_dropout": 0.25,
    "use_rslora": True,
    "use_dora": True,
    "bias": "lora_only",
    "exclude_modules": ["value"],
    "layers_to_transform": [1],
    "layers_pattern": ["layer"],
    "rank_pattern": {"query": 2},
    "alpha_pattern": {"query": 2.0},
    "init_lora_weights": "gaussian",
    "trainable_token_indices": [3, 4],
}


@pytest.mark.usefixtures("here")
def test_the_keys_of_a_section_are_those_of_the_method_and_the_seed_is_every_seed():
    start("lora", **HONORED)
    config = read_json(INIT / "adapter_config.json")
    assert {key: config[key] for key in HONORED} == HONORED
    change_params(Path(), seed=7)
    for method, field in {"vera": "projection_prng_key", "unilora": "proj_seed", "lsr": "seed"}.items():
        start(method)
        assert read_json(INIT / "adapter_config.json")[field] == 7
    start("vera", projection_prng_key=3)
    assert read_json(INIT / "adapter_config.json")["projection_prng_key"] == 3


@pytest.mark.usefixtures("here")
def test_a_section_of_lsr_has_the_defaults_of_the_library():
    start("plain", type="LSR", learning_rate=0.001, init="random", separation_rank=2)
    config = read_json(INIT / "adapter_config.json")
    usual = LsrConfig().to_dict()
    for name in ("rank_shape", "share", "train", "core", "alpha", "dropout", "layers_to_transform"):
        assert config[name] == json.loads(json.dumps(usual[name])), name


USUAL = {  # layers that PEFT adapts by default, and modules of the head
    "gpt2": (["c_attn"], ["score"]),
    "llama": (["q_proj", "v_proj"], ["score"]),
    "deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"]),
    "distilbert": (["q_lin", "v_lin"], ["pre_classifier", "classifier"]),
}


@pytest.mark.parametrize("architecture", USUAL)
@pytest.mark.usefixtures("here")
def test_a_model_without_an_entry_has_the_usual_layers_and_its_head(architecture):
    tiny.save_base(Path("models/other"), architecture)
    change_params(Path(), adapter="lora", model="models/other", lora={"target_modules": "default"})
    run_stages(Path(), "tokenize", "factorize_init")
    config = read_json(INIT / "adapter_config.json")
    targets, heads = USUAL[architecture]
    assert sorted(config["target_modules"]) == targets
    assert {*heads} <= {*config["modules_to_save"]}


@pytest.mark.usefixtures("here")
def test_a_model_that_cannot_be_adapted_by_default_or_reads_less_is_one_line():
    tiny.save_base(Path("models/other"), "xlnet")
    set_param("model", "models/other")
    set_param("lora.target_modules", "default")
    set_param("adapter", "lora")
    refused("pipeline.check", says="layer_1")
    tiny.save_base(Path("models/decoder"), "gpt2")
    set_param("model", "models/decoder")
    set_param("lora.init_lora_weights", "olora")  # PEFT would begin with another model
    refused("pipeline.check", says="olora")
    set_param("model", "models/bert")
    set_param("tokenize.max_length", 65)
    refused("stages.tokenize", says="30")
    edit(Path("models/bert/tokenizer_config.json"), model_max_length=100)
    run_stages(Path(), "tokenize")
    refused("stages.factorize_init", says="64")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
@pytest.mark.usefixtures("here")
def test_written_files_follow_the_umask(mask, mode):
    before = os.umask(mask)
    run_stages(Path(), "tokenize", "factorize_init")
    os.umask(before)
    for path in (*Path("artifacts").rglob("*.*"), *Path("reports").rglob("*.*")):
        assert stat.S_IMODE(path.stat().st_mode) == mode
