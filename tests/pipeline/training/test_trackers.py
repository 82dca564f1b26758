"""A tracker's package is there before anything is loaded; a run has a name that tells it from others."""

import importlib.util

import pytest

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.training import arguments, trackers
from tests.workspace import ROOT


@pytest.fixture
def view(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return params.load(params.TrainView)


def reporting(view, *words):
    return view.train.model_copy(update={"report_to": words})


@pytest.mark.parametrize(
    ("word", "missing"),
    [("tensorboard",) * 2, ("wandb",) * 2, ("dvclive",) * 2, ("mlflow",) * 2, ("mlflow", "sqlalchemy")],
)
def test_a_package_that_is_missing_is_one_line_with_its_extra(word, missing, view, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find("json"))
    with pytest.raises(UserError) as error:
        arguments.check_machine(reporting(view, word))
    install = f"install it with: pip install 'lsr-adapt[{word}]'"
    assert str(error.value) == f"params.yaml: train.report_to: {word}: {missing} is not installed; {install}"


@pytest.mark.parametrize("words", [(), ("none",)])
def test_nobody_is_told_where_no_tracker_is_named(words, view, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trackers.check(reporting(view, *words))
    assert trackers.callbacks(reporting(view, *words), "run") == []


def test_a_run_is_named_by_the_experiment_the_chosen_words_and_the_inputs(view, monkeypatch):
    odd = view.model_copy(update={"model": "some one/model.v2", "seed": 7})
    assert trackers.run_name(odd, "0123456789abcdef") == "movie-reviews-some-one-model.v2-lsr-seed7-01234567"
    monkeypatch.setenv("DVC_EXP_NAME", "gassy-puce")
    assert trackers.run_name(view, "0123456789abcdef") == "gassy-puce-movie-reviews-minilm-lsr-seed0-01234567"


def test_trackers_stay_on_this_machine_unless_the_environment_says_otherwise(view, tmp_path, monkeypatch):
    said = trackers.environment(tmp_path, "run")
    assert said["WANDB_MODE"] == "offline"
    assert said["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(str(tmp_path) in said[name] for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "MLFLOW_TRACKING_URI"))
    chosen = dict.fromkeys(said, "elsewhere")
    monkeypatch.setattr(trackers.os, "environ", {**chosen})
    trackers.callbacks(reporting(view, "tensorboard"), "run")
    assert trackers.os.environ == chosen


def test_every_tracker_has_an_extra():
    import tomllib
    from typing import get_args

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (words, _), *_ = [get_args(params.TrainParams.model_fields["report_to"].annotation)]
    assert set(get_args(words)) - {"none"} <= set(extras)
