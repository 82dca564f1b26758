"""What does not fit the model is one line, found by names and shapes; what fits is written alike, whatever it is."""

import json

import pytest

from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import base_models
from stages import check_model
from tests import workspace
from tests.stages.running import report


def run():
    check_model.main(params.load(params.CheckModelView))


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A function that has params.yaml changed in the workspace, which is the working folder."""
    workspace.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    whole = workspace.read_yaml(tmp_path / "params.yaml")
    return lambda **changes: workspace.write_yaml(tmp_path / "params.yaml", workspace.merged(whole, changes))


def test_every_method_fits_as_params_yaml_has_it_and_all_write_the_same(at):
    for adapter in params.ADAPTERS:
        at(adapter=adapter)
        run()
        assert report(artifacts.CHECKED_MODEL) == {"valid": "what params.yaml asks of the model"}


QUERY = "roberta.encoder.layer.0.attention.self.query"
BUDGET = {"rank_shape": [3], "separation_rank": 1, "train": "core", "core": "diagonal", "init": "update", "budget": 12}
REFUSED = {
    "lsr: target_modules: no layer is named 'qeury'; did you mean 'query'?": {"lsr": {"target_modules": ["qeury"]}},
    "lsr: layers_to_transform: no adapted layer has the index 7": {"lsr": {"layers": [7]}},
    f"lsr: layer '{QUERY}': in_shape must be [24], the width, ": {
        "lsr": {"rank_shape": [3], "separation_rank": 1, "in_shape": [30]}
    },
    f"lsr: layer '{QUERY}': in_shape must hold 2 sizes with a product from 24 to 48, ": {
        "lsr": {"in_shape": [1_000_000, 1_000_000]}
    },
    f"lsr: rank_shape: the rank, 25, is above 24, the smaller side of {QUERY}": {"lsr": {"rank_shape": [5, 5]}},
    f"lsr: layer '{QUERY}': in_shape must be [24], the width, because": {"lsr": {**BUDGET, "in_shape": [30]}},
    "lsr: budget: must be at most 96 on these layers, the sum of 64 or the smaller side of each, got 97": {
        "lsr": {**BUDGET, "budget": 97}
    },
    "directions: budget: must be at most 288 on these layers, ": {
        "adapter": "directions",
        "directions": {"budget": 289},
    },
    **{
        f"directions: layer 'roberta.{layer}' cannot be adapted: it must be Linear or Conv1D, ": {
            "adapter": "directions",
            "directions": {"target_modules": targets},
        }
        for layer, targets in (
            ("embeddings.word_embeddings", ["word_embeddings"]),
            ("embeddings", ".*embeddings"),
            ("embeddings.LayerNorm", ["LayerNorm"]),
        )
    },
    **{
        f"{word}: target_modules: {targets[-1]!r} is part of the head, or of another module that is trained in full": {
            "adapter": word,
            word: {"target_modules": targets},
        }
        for word, targets in (
            ("lsr", ["classifier"]),
            ("lora", ["query", "out_proj"]),
            ("directions", ["classifier.dense"]),
            ("vera", ["classifier"]),
        )
    },
    "lsr: target_modules: 'classifier.*' is part of the head": {"lsr": {"target_modules": "classifier.*"}},
    "tokenize.max_length: the model takes at most 30 tokens, got 31": {"tokenize": {"max_length": 31}},
    "lora: r: 25 is above 24, the smaller side of ": {"adapter": "lora", "lora": {"r": 25}},
    "c3a: block_size: 7 does not divide 24, a width of ": {"adapter": "c3a", "c3a": {"block_size": 7}},
    "peft: target_modules: no layer is named 'nothing'": {"adapter": "peft", "peft": {"target_modules": ["nothing"]}},
    "peft: type: PEFT ": {"adapter": "peft", "peft": {"type": "NOTHING"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_one_line(at, message):
    at(**REFUSED[message])
    with pytest.raises(UserError) as error:
        run()
    assert str(error.value).startswith(f"params.yaml: {message}")
    assert "\n" not in str(error.value)
    assert not artifacts.CHECKED_MODEL.exists()


def test_a_separation_rank_is_refused_that_the_shapes_of_the_layers_do_not_allow(at):
    at(lsr={"separation_rank": 1000})
    with pytest.raises(UserError, match=r"params.yaml: lsr: .*separation_rank.*1000"):
        run()


def test_positions_count_where_the_tokenizer_knows_no_limit(at, tmp_path):
    path = tmp_path / "tiny-roberta/tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["model_max_length"]
    path.write_text(json.dumps(fields))
    at(tokenize={"max_length": 32})
    run()
    at(tokenize={"max_length": 33})
    with pytest.raises(UserError, match="the model takes at most 32 tokens, got 33"):
        run()


def test_code_that_a_model_brings_is_not_run_and_that_is_said(at, tmp_path, monkeypatch, capsys):
    tables = workspace.read_yaml(tmp_path / "pipeline/models.yaml")
    trusting = workspace.merged(tables["tiny"], {"source": {"trust_remote_code": True}})
    workspace.write_yaml(tmp_path / "pipeline/models.yaml", tables | {"tiny": trusting})
    monkeypatch.setattr(base_models, "outline", lambda *_: pytest.fail("it was looked at"))
    at(lsr={"target_modules": ["nothing"]})
    run()
    assert "tiny-roberta: not checked, because it brings code" in " ".join(capsys.readouterr().out.split())
