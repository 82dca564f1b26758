import json

import pytest
from peft import PeftConfig, PeftModel, get_peft_model

from lsr import LsrConfig
from tests.capabilities.models import tiny

USUAL = {"out_features": 24, "in_features": 24, "out_shape": [6, 4], "in_shape": [6, 4]}
FIELDS = {"usual": USUAL, "others": {}}


def saved(folder):
    """An adapter's folder."""
    get_peft_model(tiny("bert"), LsrConfig(separation_rank=2, seed=0)).save_pretrained(str(folder))
    return folder


def change(folder, resolved):
    """Write something else about the layers into an adapter's folder."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resolved": resolved}))


def test_the_split_of_a_file_is_used_and_not_a_new_one(tmp_path):
    other = {**USUAL, "in_shape": [4, 6]}
    change(saved(tmp_path), {**FIELDS, "usual": other})
    with pytest.raises(RuntimeError, match="size mismatch"):  # the file's factors are those of the other split
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path))


@pytest.mark.parametrize(
    "resolved",
    [
        "a\nb",
        {},
        {**FIELDS, "others": {"bert.encoder.layer.0.attention.self.query": {}}},
    ],
    ids=str,
)
def test_what_is_malformed_is_refused_in_one_line(resolved, tmp_path):
    change(saved(tmp_path), resolved)
    for load in (PeftConfig.from_pretrained, lambda folder: PeftModel.from_pretrained(tiny("bert"), folder)):
        with pytest.raises(ValueError, match=r"^resolved: not what a saved adapter says of its layers: .+$") as found:
            load(str(tmp_path))
        assert "\n" not in str(found.value)
