"""A run's checkpoints: the last complete one is taken, whatever a kill has left of others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from pipeline.training.checkpoints import KeepComplete, aside, path_of

WEIGHTS = "adapter_model.safetensors"


def save(folder, step, best):
    """What the Trainer leaves aside, and the callback after it."""
    written = aside(folder) / f"checkpoint-{step}"
    written.mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, written / WEIGHTS)
    torch.save({"step": step}, written / "optimizer.pt")
    state = TrainerState(global_step=step, best_global_step=best, best_model_checkpoint=str(written))
    state.save_to_json(str(written / "trainer_state.json"))
    arguments = TrainingArguments(output_dir=str(aside(folder)), report_to=[])
    KeepComplete(folder).on_save(arguments, state, TrainerControl())
    return state


@pytest.fixture
def kept(tmp_path):
    """The best checkpoint, of step 10, and the last one, of step 30."""
    for step in (10, 20, 30):
        save(tmp_path, step, best=10)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_best_and_the_last_are_kept(kept):
    assert names(kept) == ["checkpoint-10", "checkpoint-30", "writing"]
    assert names(aside(kept)) == []


def test_a_moved_run_finds_its_best_checkpoint(kept, tmp_path):
    moved = kept.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    state = TrainerState.load_from_json(str(path_of(moved, 30) / "trainer_state.json"))
    KeepComplete(moved).on_train_begin(None, state, None)
    assert Path(state.best_model_checkpoint) == moved / "checkpoint-10"
