"""Frames of trained adapters against dense projections of their updates."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from lsr import LsrConfig, pool_frames
from lsr.loading.files import InputError
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import logits, tiny

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def saved(folder, seed=0, **fields):
    """An adapter with random factors in a folder, and its updates by layer."""
    usual = {"task_type": "SEQ_CLS", "rank_shape": (3,), "train": "core", "seed": seed, "init_weights": False}
    model = get_peft_model(tiny("bert"), LsrConfig(**{**usual, **fields}))
    model.save_pretrained(str(folder))
    return {name: layer.adapter("default").update().detach().double() for name, layer in adapted_layers(model).items()}


def frames_in(folder, prefix=QUERY):
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"{prefix}.lsr_adapters.factor_{side}1"][0].double() for side in "AB")
    return a, b, tensors


def test_pooled_frames_hold_the_shares_that_are_reported(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    updates = [saved(folder, seed) for seed, folder in enumerate(folders)]
    reports = pool_frames(folders, tmp_path / "frames", rank=4)
    a, b, _ = frames_in(tmp_path / "frames")
    name = QUERY.removeprefix("base_model.model.")
    for folder, found in zip(folders, updates, strict=True):
        held = (b.T @ found[name] @ a.T).square().sum() / found[name].square().sum()
        assert 0.3 < reports[name].energy[str(folder)] < 1
        assert reports[name].energy[str(folder)] == pytest.approx(float(held), abs=1e-5)


def test_rounded_frames_hold_what_is_reported_of_them(tmp_path):
    updates = saved(tmp_path / "one")
    reports = pool_frames([tmp_path / "one"], tmp_path / "frames", dtype="sign")
    member = get_peft_model(
        tiny("bert"), LsrConfig(rank_shape=(3,), train="core", frames_dtype="sign", frames=str(tmp_path / "frames"))
    )
    name = QUERY.removeprefix("base_model.model.")
    adapter = adapted_layers(member)[name].adapter("default")
    a, b = (side.detach().double() for side in adapter.matrices(*adapter.factors()))
    core = torch.linalg.pinv(b) @ updates[name] @ torch.linalg.pinv(a)
    held = 1 - (updates[name] - b @ core @ a).square().sum() / updates[name].square().sum()
    assert reports[name].energy[str(tmp_path / "one")] == pytest.approx(float(held), abs=1e-5)
    assert held < 0.9


def test_a_lora_takes_part(tmp_path):
    model = get_peft_model(tiny("bert"), LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "lora"))
    saved(tmp_path / "lsr")
    reports = pool_frames([tmp_path / "lora", tmp_path / "lsr"], tmp_path / "frames", rank=5)
    assert all(energy == pytest.approx(1) for one in reports.values() for energy in one.energy.values())


@pytest.mark.parametrize(("share", "dtype"), [("layers", "float32"), ("layers", "sign")])
def test_the_folder_is_an_adapter_that_changes_nothing_and_counts_entries(tmp_path, share, dtype):
    saved(tmp_path / "one")
    reports = pool_frames([tmp_path / "one"], tmp_path / "frames", share=share, dtype=dtype)
    assert [one.layers for one in reports.values()] == ([2, 2] if share == "layers" else [1] * 4)
    assert {one.parameters for one in reports.values()} == {2 * 3 * 24}
    model = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "frames")).eval()
    assert torch.equal(logits(model), logits(tiny("bert").eval()))


def test_a_rank_adapters_of_different_layers_and_other_bases_are_refused(tmp_path):
    saved(tmp_path / "one")
    with pytest.raises(InputError, match=r"--rank must be in \[1, 24\] for layer .*, got 25"):
        pool_frames([tmp_path / "one"], tmp_path / "frames", rank=25)
    saved(tmp_path / "two", target_modules=["query"])
    with pytest.raises(InputError, match="which not all adapters do"):
        pool_frames([tmp_path / "one", tmp_path / "two"], tmp_path / "frames")
    saved(tmp_path / "three")
    path = tmp_path / "three/adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "base_model_name_or_path": "another"}))
    with pytest.raises(InputError, match=r"of different base models: .*another"):
        pool_frames([tmp_path / "one", tmp_path / "three"], tmp_path / "frames")
