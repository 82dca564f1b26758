"""The line that runs a row again is one that DVC takes, and sets what the training had."""

import shlex
import shutil
from pathlib import Path

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from pipeline import params
from pipeline.compare.commands import command, snippet
from tests.pipeline.compare.records import record
from tests.workspace import ROOT


def values(line):
    words = shlex.split(line)
    assert words[:3] == ["dvc", "exp", "run"]
    assert words[3::2] == ["-S"] * len(words[3::2])
    return words[4::2]


def overrides_of(made):
    return to_path_overrides(values(command(made)))["params.yaml"]


@pytest.mark.parametrize("adapter", params.ADAPTERS)
def test_the_line_of_every_adapter_is_valid(adapter, monkeypatch, tmp_path):
    overrides = {"peft": {"peft.type": "LOHA", "peft.options": {"r": 4}}, "lsr": {"lsr.rank_shape": [2, 2]}}
    rate = None if adapter == "head" else 0.003
    made = record(adapter=adapter, overrides=overrides.get(adapter, {}), rate=rate, seed=3)
    (tmp_path / "pipeline").mkdir()
    for path in (params.PARAMS, *(path for path, _ in params.TABLES.values())):
        shutil.copy(ROOT / path, tmp_path / path)
    apply_overrides(tmp_path / params.PARAMS, overrides_of(made))
    monkeypatch.chdir(tmp_path)
    seen = params.load(params.TrainView)
    assert (seen.adapter, seen.seed, seen.data, seen.model) == (adapter, 3, "rte", "minilm")
    assert (seen.train.epochs, seen.train.head_learning_rate) == (3, 0.002)


def test_values_mean_nothing_to_a_shell_and_the_same_to_dvc():
    odd = "$(touch exploded); 'a' | b, {c}"
    made = record(overrides={"lora.target_modules": odd, "lora.r": 2, "lora.use_dora": True})
    found = overrides_of(made)
    assert {"lora.use_dora=true", "lora.r=2"} <= {word.lower() for word in found}
    with_it = next(word for word in found if word.startswith("lora.target_modules="))
    assert "$(touch exploded)" in with_it
    assert not Path("exploded").exists()


def test_the_snippet_is_a_part_of_params_yaml():
    found = YAML(typ="safe", pure=True).load(
        snippet(record(overrides={"lora.r": 2, "lora.target_modules": ["q", "v"]}))
    )
    assert found["lora"] == {"r": 2, "target_modules": ["q", "v"], "learning_rate": 0.002}
    assert found["train"] == {"epochs": 3, "head_learning_rate": 0.002}
    assert (found["data"], found["model"], found["adapter"], found["seed"]) == ("rte", "minilm", "lora", 0)
