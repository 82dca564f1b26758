"""Every mistake in params.yaml and in the two tables is one line that says how to mend it."""

import ast
import datetime
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.params.__main__ import main
from pipeline.params.rows import DatasetRow

ROOT = Path(__file__).parents[3]
YAML_12 = YAML(typ="safe", pure=True)
DATASETS = YAML_12.load(ROOT / "pipeline/datasets.yaml")
DATA_ROWS = list(DATASETS)
WORDS = {
    *("lsr", "lora", "full", "head", "directions", "loraxs", "lorasb", "lokr", "krona", "kadaptation", "vera"),
    *("fourierft", "vblora", "unilora", "tinylora", "c3a", "ia3", "bitfit", "ln_tuning", "peft"),
}
MODEL_ROWS = list(YAML_12.load(ROOT / "pipeline/models.yaml"))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A copy of the three files that a user writes, as the working directory."""
    (tmp_path / "pipeline").mkdir()
    for name in ("params.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, content):
    """Write content as YAML, as DVC does."""
    yaml = YAML()
    yaml.default_flow_style = False
    with Path(path).open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def change(path, key, value):
    """Set the dotted key; a value of ... deletes it."""
    content = YAML_12.load(Path(path))
    *sections, last = key.split(".")
    section = content
    for name in sections:
        section = section[int(name) if isinstance(section, list) else name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    write(path, content)


def refusal(load=lambda: params.load(params.TrainView)):
    with pytest.raises(UserError) as error:
        load()
    return str(error.value).splitlines()


# The files of the repository


def test_the_sections_of_the_file_are_those_that_adapter_selects(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert set(params.load_params().sections) == set(params.sections()) == set(WORDS)


@pytest.mark.parametrize("name", DATA_ROWS)
def test_every_data_set_row_is_valid(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert params.load_row("data", name).metrics


@pytest.mark.parametrize("name", MODEL_ROWS)
def test_every_model_row_is_valid(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert params.load_row("model", name).target_modules


@pytest.mark.parametrize("name", DATA_ROWS)
def test_a_row_has_a_name_that_dvc_can_find(name):
    assert re.fullmatch("[A-Za-z0-9_-]+", name)


def test_any_row_can_select_on_test_by_one_word():
    assert all("select_on" in row for row in DATASETS.values())
    for row in DATASETS.values():
        assert DatasetRow.model_validate(row | {"select_on": "test"}).select_on == "test"


def test_the_file_has_no_templates():
    assert "${" not in (ROOT / "params.yaml").read_text()


def test_only_the_schema_opens_the_file():
    def names_it(path):
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        return any(isinstance(value, str) and re.fullmatch(r"(.*/)?params\.yaml", value) for value in constants)

    sources = [path for folder in ("lsr", "pipeline", "stages") for path in (ROOT / folder).rglob("*.py")]
    assert [path.relative_to(ROOT).as_posix() for path in sources if names_it(path)] == ["pipeline/params/schema.py"]


# What a stage sees


@pytest.mark.parametrize("adapter", ["lsr", "full", "directions", "vera"])
def test_the_section_is_that_of_the_adapter(adapter, workspace):
    change("params.yaml", "adapter", adapter)
    view = params.load(params.TrainView)
    assert view.section.word == view.adapter == adapter


def test_a_section_of_ones_own_is_a_line(workspace):
    with Path("params.yaml").open("a") as file:
        file.write("mine: {type: BOFT, boft_block_size: 8, learning_rate: 0.01}\n")
    change("params.yaml", "adapter", "mine")
    section = params.load(params.TrainView).section
    assert (section.type, section.options, section.rates) == ("BOFT", {"boft_block_size": 8}, {"learning_rate": 0.01})


def test_an_lsr_section_has_the_defaults_of_the_library():
    from lsr import LsrConfig

    section = params.LsrParams(type="LSR", learning_rate=0.1)
    usual, renamed = LsrConfig(), {"layers": "layers_to_transform"}
    own = {"type", "learning_rate", "init", "examples", "head_steps", "frames_from", "budget"}
    for name, value in section:
        default = getattr(usual, renamed.get(name, name)) if name not in own else value
        assert value == default or (value in ("auto", "default", "all") and default in (None, 16)), name


@pytest.mark.parametrize("view", [params.TokenizeView, params.FactorizeInitView, params.TrainView, params.EvaluateView])
def test_a_view_holds_its_fields_and_no_others(view, workspace):
    assert set(vars(params.load(view))) == set(view.model_fields)


def test_a_view_cannot_be_changed(workspace):
    with pytest.raises(ValueError, match="frozen"):
        params.load(params.TrainView).train.epochs = 7


def test_a_float_as_dvc_writes_it_is_a_number(workspace):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"\blearning_rate: [\d.]+", "learning_rate: 1e-05", text))
    assert params.load(params.TrainView).section.learning_rate == 1e-05


# Mistakes

NOW = datetime.date(2025, 1, 1)
MISTAKES = [
    ("train.epochs", ..., "train.epochs: this key is required"),
    ("train.batch_sise", 4, "train.batch_sise: no such key; did you mean batch_size?"),
    ("lsr.zzz", 4, "lsr.zzz: no such key"),
    ("sed", 0, "sed: no such key; did you mean seed?"),
    ("head", ..., "head: this key is required"),
    ("adapter", "lro", "adapter: no such section; did you mean lsr?; sections: full, head, lsr, lora, directions, "),
    ("adapter", "train", "adapter: no such section; sections: full, head, lsr, lora, directions, loraxs, lorasb, "),
    ("lroa", {"r": 8}, "lroa: no such key; did you mean lsr?; the section of a method has a type"),
    ("lora.type", ..., "lora: no such key; did you mean lsr?; the section of a method has a type"),
    ("lora.type", 3, "lora.type: input should be a valid string, got 3"),
    ("lora.learning_rate", 0, "lora.learning_rate: input should be greater than 0, got 0"),
    ("vblora.logits_learning_rate", 2, "vblora: logits_learning_rate: must be above 0 and at most 1, got 2"),
    ("vera.r", NOW, "vera.r: input was not a valid JSON value"),
    ("lsr.type", "LORA", "lsr.type: input should be 'LSR', got 'LORA'; did you mean LSR?"),
    ("loraxs.frames", "own", "loraxs.frames: section lsr alone can have this key"),
    ("loraxs.alhpa", 3, "loraxs.alhpa: no such key; did you mean alpha?"),
    ("lsr.train", "first", "lsr.train: input should be 'factors', 'core' or 'all', got 'first'"),
    ("lsr.frames_dtype", "int8", "lsr.frames_dtype: input should be 'float32', 'bfloat16' or 'sign', got 'int8'"),
    ("head", None, "head: must hold keys and values, or {} for none, got None"),
    ("train", [1], "train: must hold keys and values, or {} for none, got [1]"),
    ("train.epochs", "four", "train.epochs: input should be a valid integer, got 'four'"),
    ("train.epochs", 1.5, "train.epochs: input should be a valid integer, got 1.5"),
    ("train.epochs", 0, "train.epochs: input should be greater than or equal to 1, got 0"),
    ("train.warmup_share", 1.5, "train.warmup_share: input should be less than or equal to 1, got 1.5"),
    ("train.precision", "bf32", "train.precision: input should be 'fp32', 'bf16' or 'fp16', got 'bf32'; did you mean"),
    ("train.report_to", ["tensorbord"], "train.report_to.0: input should be 'none', 'tensorboard', 'wandb' or 'mlfl"),
    ("train.report_to", ["none", "wandb"], "train.report_to: none stands alone, got ['none', 'wandb']"),
    ("train.compile", "maybe", "train.compile: input should be a valid boolean, got 'maybe'"),
    ("evaluate.export", ..., "evaluate.export: this key is required"),
    ("evaluate.export", "lora", "evaluate.export: input should be a list, got 'lora'"),
    ("evaluate.export", ["lroa"], "evaluate.export.0: input should be 'lora' or 'merged', got 'lroa'; did you"),
    ("evaluate.export", ["lora", "lora"], "evaluate.export: names must differ from each other, got ['lora', 'lora']"),
    ("tokenize.max_length", 7, "tokenize.max_length: input should be greater than or equal to 8, got 7"),
    ("seed", -1, "seed: input should be greater than or equal to 0, got -1"),
    ("lsr.learning_rate", float("inf"), "lsr.learning_rate: input should be a finite number, got inf"),
    ("lsr.in_shape", [], "lsr.in_shape: input should be 'auto' or a list of at least 1, got []"),
    ("lsr.share", "kinds", "lsr.share: input should be 'none' or 'layers', got 'kinds'"),
    ("lsr.layers", [1, 1], "lsr.layers: input should be 'all' or names must differ from each other, got [1, 1]"),
    ("lsr.frames_from", ["tweets", "twets"], "lsr.frames_from: no row 'twets' in pipeline/datasets.yaml; did you mean"),
    ("lsr.frames_from", ["tweets", "tweets"], "lsr.frames_from: names must differ from each other, got ['tweets', 't"),
    ("lsr.frames", "", "lsr.frames: string should have at least 1 character, got ''"),
    ("lsr.core", "diag", "lsr.core: input should be 'full' or 'diagonal', got 'diag'"),
    ("lsr.rank_shape", [], "lsr.rank_shape: input should be a list of at least 1, got []"),
    ("lora.layers", [-1], "lora.layers.0: input should be greater than or equal to 0, got -1"),
    ("lsr.in_shape", [2, 0], "lsr.in_shape.1: input should be greater than or equal to 1, got 0"),
    ("lsr.in_shape", "atuo", "lsr.in_shape: input should be 'auto' or a list, got 'atuo'; did you mean auto?"),
    ("lsr.rank_shape", [2, "x"], "lsr.rank_shape.1: input should be a valid integer, got 'x'"),
    ("lsr.target_modules", [], "lsr.target_modules: input should be a valid string or a list of at least 1, got []"),
    ("lora.target_modules", ["query", 3], "lora.target_modules.1: input should be a valid string, got 3"),
    ("lsr.init", "row_space", "lsr.init: input should be 'random', 'principal', 'gradient', 'update' or 'warm', got"),
    ("train.epochs", True, "train.epochs: input should be a valid integer, got True"),
    ("train.epochs", 2.0, "train.epochs: input should be a valid integer, got 2.0"),
    ("train.epochs", 10**400, "train.epochs: input should be less than or equal to 100000, got 1000"),
    ("train.batch_size", 10**18, "train.batch_size: input should be less than or equal to 65536, got 1000"),
    ("train.compile", 1, "train.compile: input should be a valid boolean, got 1"),
    ("train.head_learning_rate", 1e300, "train.head_learning_rate: input should be less than or equal to 1, got 1e"),
    ("train.warmup_share", True, "train.warmup_share: input should be a valid number, got True"),
    ("train.weight_decay", 1e9, "train.weight_decay: input should be less than or equal to 1, got 1000000000.0"),
    ("evaluate.batch_size", "32", "evaluate.batch_size: input should be a valid integer, got '32'"),
    ("full.learning_rate", 10**6, "full.learning_rate: input should be less than or equal to 1, got 1000000"),
    ("full.learning_rate", 10**400, "full.learning_rate: input should be"),
    ("lsr.learning_rate", 0, "lsr.learning_rate: input should be greater than 0, got 0"),
    ("lsr.rank_shape", [1] * 12, "lsr.rank_shape: input should be a list of at most 6, got [1, 1, 1, 1, 1, 1, 1, 1,"),
    ("lsr.rank_shape", [10**7, 2], "lsr.rank_shape.0: input should be less than or equal to 16384, got 10000000"),
    ("lsr.rank_shape", [True, 2], "lsr.rank_shape.0: input should be a valid integer, got True"),
    ("lsr.target_modules", "qu(ery", "lsr.target_modules: not a valid regular expression: missing ), unterminated"),
    ("lora.target_modules", "(" * 999, "lora.target_modules: not a valid regular expression: "),
    ("seed", True, "seed: input should be a valid integer, got True"),
    ("lsr.residual", "fold", "lsr.residual: no such key"),
    ("data", "movie-reviws", "data: no row 'movie-reviws' in pipeline/datasets.yaml; did you mean movie-reviews?"),
    ("data", "a.b", "data: string should match pattern '^[A-Za-z0-9_-]+$', got 'a.b'"),
    ("model", "minilmm", "model: no row 'minilmm' in pipeline/models.yaml; did you mean minilm?; rows: minilm, "),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES)
def test_a_mistake_is_one_line(workspace, key, value, message):
    change("params.yaml", "lsr.init", "update")  # which may be pooled
    change("params.yaml", key, value)
    (line,) = refusal()
    assert line.startswith(f"params.yaml: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lsr.budget": 9},
            "lsr: budget: needs init: gradient or update or warm, frames: own, share: none, train: core or all, core: "
            "diagonal; got share: layers, core: full",
        ),
        (
            {"lora.layers": [1], "lora.target_modules": "all-linear"},
            "lora: layers: needs target_modules to be default or a list; got target_modules: all-linear",
        ),
        (
            {"lora.layers": [1], "lora.target_modules": ".*query"},
            "lora: layers: needs target_modules to be default or a list; got target_modules: .*query",
        ),
    ],
)
def test_words_that_do_not_go_together_are_one_line(workspace, changes, message):
    for key, value in changes.items():
        change("params.yaml", key, value)
    assert refusal() == [f"params.yaml: {message}"]


@pytest.mark.parametrize("adapter", ["lora", "head"])
def test_only_an_lsr_adapter_is_exported_as_lora(workspace, adapter):
    change("params.yaml", "adapter", adapter)
    change("params.yaml", "evaluate.export", ["merged"])
    assert params.load(params.EvaluateView).evaluate.export == ("merged",)
    change("params.yaml", "evaluate.export", ["lora", "merged"])
    (line,) = refusal()
    assert line.startswith("params.yaml: evaluate: export: lora is for sections of type LSR, which ")


def test_an_unknown_adapter_is_reported_once_beside_an_export(workspace):
    change("params.yaml", "adapter", "lro")
    change("params.yaml", "evaluate.export", ["lora"])
    (line,) = refusal()
    assert line.startswith("params.yaml: adapter: no such section")


def test_a_misspelt_key_is_not_reported_as_missing_too(workspace):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("epochs:", "epoch:"))
    assert refusal() == ["params.yaml: train.epoch: no such key; did you mean epochs?"]


def test_all_mistakes_are_reported_at_once(workspace):
    change("params.yaml", "train.epochs", 0)
    change("params.yaml", "evaluate.resamples", 1)
    assert [line.split(":")[1].strip() for line in refusal()] == ["train.epochs", "evaluate.resamples"]


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"lsr.init": "principal"}, "init: principal and frames: own"),
        ({"lsr.init": "warm"}, "init: warm and frames: own"),
        ({"lsr.frames": "models/family"}, "init: update and frames: models/family"),
    ],
)
def test_rows_are_pooled_where_their_gradients_make_the_frames(workspace, changes, got):
    change("params.yaml", "lsr.init", "update")
    change("params.yaml", "lsr.frames_from", ["movie-reviews", "tweets"])
    assert set(params.load(params.FactorizeInitView).pooled) == {"movie-reviews", "tweets"}
    for key, value in changes.items():
        change("params.yaml", key, value)
    needs = "pools gradients or updates, so it needs init: gradient or update, and frames: own"
    assert refusal() == [f"params.yaml: lsr: frames_from: {needs}; got {got}"]


@pytest.mark.parametrize("view", [params.TokenizeView, params.FactorizeInitView])
def test_a_pooled_row_is_checked_like_the_chosen_one(workspace, view):
    change("params.yaml", "lsr.init", "update")
    change("params.yaml", "lsr.frames_from", ["tweets"])
    change("pipeline/datasets.yaml", "tweets.metrics", [])
    assert refusal(lambda: params.load(view)) == [
        "pipeline/datasets.yaml: tweets.metrics: input should be a list of at least 1, got []"
    ]


def test_a_mistake_in_an_unused_section_is_reported(workspace):
    change("params.yaml", "lora.layers", [])
    (line,) = refusal(lambda: params.load(params.TokenizeView))
    assert line.startswith("params.yaml: lora.layers: input should be 'all' or a list of at least 1, got []")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [0\nx: 1\n", "params.yaml: not valid YAML: line 2: expected ',' or ']', but got ':'"),
        (b"seed: 0\nseed: 1\n", 'params.yaml: not valid YAML: line 2: found duplicate key "seed"'),
        (b"a:\n\tb: 1\n", "params.yaml: not valid YAML: line 2: found character '\\t' that cannot start any token"),
        (b"data: \xff\n", "params.yaml: not valid YAML: unacceptable character #x00ff: invalid start byte"),
        (b"", "params.yaml: must hold keys and values, got None"),
        (b"- 1\n", "params.yaml: must hold keys and values, got [1]"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(workspace, content, message):
    Path("params.yaml").write_bytes(content)
    (line,) = refusal()
    assert line.startswith(message)


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates()),
    *(st.integers(-(10**30), 10**30), st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=13)),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
KEYS = [
    key if inner is None else f"{key}.{inner}"
    for key, section in YAML_12.load(ROOT / "params.yaml").items()
    for inner in ([None, *section] if isinstance(section, dict) else [None])
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_valid_or_refused_in_short_lines(workspace, key, value):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    change("params.yaml", key, value)
    before = Path("params.yaml").read_bytes()
    try:
        params.load(params.TrainView)
    except UserError as error:
        assert all(0 < len(line) <= 300 and line.startswith("params.yaml: ") for line in str(error).splitlines())  # noqa: PT017
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["params.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml"])
def test_a_file_that_is_not_there_is_one_line(workspace, name):
    Path(name).unlink()
    assert refusal() == [f"{name}: not found; run from the root of the repository"]


ROW_MISTAKES = [
    ("source.kind", "pakage", "kind: input should be 'hub', 'files', 'package', got 'pakage'; did you mean package?"),
    ("source.kind", ..., "source.kind: this key is required"),
    ("source.pack", "x", "source.pack: no such key; did you mean package?"),
    ("source.package", ..., "source.package: this key is required"),
    ("source.package", "-r==1", "source.package: string should match pattern"),
    ("source.sha256", "z", "source.sha256: string should match pattern '^[0-9a-f]{64}$', got 'z'"),
    ("source.columns", [], "source.columns: input should be a list of at least 1, got []"),
    ("label", "rating", "label: must hold keys and values, or {} for none, got 'rating'"),
    ("label.column", ..., "label.column: this key is required"),
    ("label.margn", 1, "label.margn: no such key; did you mean margin?"),
    ("label.margin", -1, "label.margin: input should be greater than or equal to 0, got -1"),
    ("label.above", float("nan"), "label.above: input should be a finite number, got nan"),
    ("label.names", ["a", "b", "c"], "label.names: input should be a list of at most 2, got ['a', 'b', 'c']"),
    ("label.names", ["a", "a"], "label.names: names must differ from each other, got ['a', 'a']"),
    ("label", {"column": "rating", "low": 4, "high": 4}, "label: low must be below high, got 4 and 4"),
    ("label.above", 1e300, "label.above: input should be less than or equal to 1000000000000000, got 1e+300"),
    ("label", {"column": "rating", "low": -1e300, "high": 1}, "label.low: input should be greater than or equal"),
    ("label.margin", True, "label.margin: input should be a valid number, got True"),
    ("pairs", {"margin": 1}, "movie-reviews: pairs compare numbers: the label needs low and high, and no names"),
    ("pairs", {"margin": 0}, "pairs.margin: input should be greater than 0, got 0"),
    ("pairs", {}, "pairs.margin: this key is required"),
    ("pairs", 1, "pairs: must hold keys and values, or {} for none, got 1"),
    ("pairs", {"margn": 1}, "pairs.margn: no such key; did you mean margin?"),
    ("text", "text", "text: input should be a list, got 'text'"),
    ("metrics", ["accuracy", "f2"], "metrics.1: input should be 'accuracy', 'f1', 'macro_f1', 'matthews"),
    ("metrics", ["pearson"], "movie-reviews: metrics ['pearson'] do not fit this label; allowed are ['accuracy',"),
    ("cut.tset", 0.1, "cut.tset: input should be 'validation' or 'test', got 'tset'; did you mean test?"),
    ("cut.test", ..., "movie-reviews: nothing provides test: name it in the source, or cut it from train"),
    ("cut.test", 0.95, "movie-reviews: the cut shares must leave rows for train, got a sum of 1.05"),
    ("select_on", "tset", "select_on: input should be 'validation' or 'test', got 'tset'; did you mean test?"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), ROW_MISTAKES)
def test_a_mistake_in_a_row_is_one_line(workspace, key, value, message):
    write("pipeline/datasets.yaml", {"movie-reviews": DATASETS["movie-reviews"]})  # alone, it is soon read
    change("pipeline/datasets.yaml", f"movie-reviews.{key}", value)
    (line,) = refusal()
    assert line.startswith("pipeline/datasets.yaml: movie-reviews")
    assert message in line


def test_pairs_are_made_of_one_text_column(workspace):
    change("pipeline/datasets.yaml", "movie-pairs.text", ["text", "id"])
    (line,) = refusal(lambda: params.load_row("data", "movie-pairs"))
    assert line.endswith("movie-pairs: pairs are made of one text column, got text, id")


TASK_MISTAKES = [
    ("copa.choices", ["choice1"], "copa: choices need a label with 1 names, one for each in their order"),
    ("copa.text", ["premise"], "copa: choices need a text with {choice}, got premise"),
    ("copa.group", ["idx"], "copa: choices already form groups: leave out group"),
    ("copa.metrics", ["accuracy", "f1"], "copa: choices are scored by accuracy alone, got accuracy, f1"),
    ("copa.text", ["{premise", "{choice}"], "copa.text.0: a template has columns in braces, such as '{premise} What"),
    ("multirc.group", ..., "multirc: metrics ['exact_match'] score groups: define them with `group`"),
    ("wsc.mark.0.column", "txt", "wsc: mark: txt is in no text; columns of the text are text"),
    ("wsc.mark.0.says", ..., "wsc.mark.0: a mark needs start and end, or word and says, got word"),
    ("stsb.metrics", ["accuracy"], "stsb: metrics ['accuracy'] do not fit this label; allowed are ['pearson', 'spearm"),
    ("stsb.stratify", True, "stsb: stratify: needs a label of classes, and no choices, group or pairs"),
    ("wic.source.columns", ["a", "b"], "wic.source: columns is for .csv and .tsv and .txt files, got data/superglue"),
    ("cola.source.each", "a.b", "cola.source: each is for .jsonl and .json files, got data/glue/CoLA/train.tsv"),
    ("cola.source.kind", "file", "cola.source.kind: input should be 'hub', 'files', 'package', got 'file'"),
    ("cola.source.splits", {}, "cola.source: kind: hub needs path and splits"),
    ("cola.source.pth", "x", "cola.source.pth: no such key; did you mean path?"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), TASK_MISTAKES)
def test_a_mistake_in_the_row_of_a_task_is_one_line(tmp_path, monkeypatch, key, value, message):
    name = key.partition(".")[0]
    (tmp_path / "pipeline").mkdir()
    monkeypatch.chdir(tmp_path)
    write("pipeline/datasets.yaml", {name: DATASETS[name]})
    change("pipeline/datasets.yaml", key, value)
    (line,) = refusal(lambda: params.load_row("data", name))
    assert message in line


def test_pairs_are_no_regression(workspace):
    change("pipeline/datasets.yaml", "movie-pairs.metrics", ["pearson"])
    (line,) = refusal(lambda: params.load_row("data", "movie-pairs"))
    assert "metrics ['pearson'] do not fit this label; allowed are ['accuracy'," in line


def test_select_on_test_leaves_no_use_for_a_validation_split_of_the_source(workspace):
    change("pipeline/datasets.yaml", "mrpc.source.splits.validation", "test")
    change("pipeline/datasets.yaml", "mrpc.cut", {})
    change("pipeline/datasets.yaml", "mrpc.select_on", "test")
    (line,) = refusal(lambda: params.load_row("data", "mrpc"))
    assert "select_on: test leaves no use for the validation split; remove it from the source" in line


# The command


def test_the_command_checks_all_sections_with_peft_and_says_what_would_run(workspace, capsys):
    main([])
    assert capsys.readouterr().out == "params.yaml: fine: lsr on minilm, movie-reviews, seed 0\n"
    change("params.yaml", "vera.rr", 3)
    change("params.yaml", "lsr.rank_shape", [2, 2])
    change("params.yaml", "lsr.core", "diagonal")
    with pytest.raises(SystemExit, match="2"):
        main([])
    found = capsys.readouterr()
    assert found.out == ""
    lsr, vera = found.err.splitlines()
    assert lsr.startswith("params.yaml: lsr: ")
    assert vera == "params.yaml: vera.rr: no such key; did you mean r?"


def test_the_command_takes_no_words(workspace, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train.epochs=3"])
    program = "python -m pipeline.params"
    assert capsys.readouterr().err == f"{program}: unrecognized arguments: train.epochs=3; see {program} --help\n"
