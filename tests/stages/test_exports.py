"""What the stage evaluate exports: both forms, the same logits, the same bytes, from one base model."""

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr.tuner.linear import adapted_layers
from pipeline import params, summary
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters, base_models
from tests import workspace
from tests.stages.running import EVALUATE, TRAIN, base_of, digests, logits, report, run


def exported(words):
    """Return what the exports say beside the adapter."""
    assert {path.name for path in artifacts.EXPORTS.iterdir()} == {"parity.json", "README.md", *words}
    return report(artifacts.EXPORTS / "parity.json")


def test_both_forms_are_written_from_one_base_model_and_compared(after, capsys, monkeypatch):
    folder = after(lsr={"learning_rate": 0.1}, evaluate={"export": ["merged", "lora"]})
    run(TRAIN)
    loads = []
    usual = base_models.load_base_model
    monkeypatch.setattr(base_models, "load_base_model", lambda *given: loads.append(1) or usual(*given))
    run(EVALUATE)
    assert len(loads) == 1
    differences = exported(["lora", "merged"])
    assert differences.keys() == {"lora", "merged"}
    assert all(value < 1e-5 for value in differences.values())
    summary.main([])
    shown = f"exported    artifacts/exports/lora, whose logits differ by at most {differences['lora']:.2g}\n"
    assert shown in capsys.readouterr().out

    view = params.load(params.EvaluateView)
    model = adapters.load_adapter(base_of(view), artifacts.ADAPTER, trainable=False)
    expected = logits(model)
    for layer in adapted_layers(model).values():
        layer.adapter("default").scaling = 0.0
    assert (logits(model) - expected).abs().max() > 1e-3  # the update is no small thing that could be lost unseen
    merged = AutoModelForSequenceClassification.from_pretrained("artifacts/exports/merged")
    assert logits(merged) == pytest.approx(expected, abs=1e-5)
    assert merged.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert not any("lsr" in name or "lora" in name for name in merged.state_dict())
    assert AutoTokenizer.from_pretrained("artifacts/exports/merged")("the cat")["input_ids"][0] == 0
    plain = PeftModel.from_pretrained(base_of(view), "artifacts/exports/lora")
    assert logits(plain) == pytest.approx(expected, abs=1e-5)
    config = report(artifacts.EXPORTS / "lora/adapter_config.json")
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "tiny-roberta")
    for path in artifacts.EXPORTS.rglob("*.json"):
        assert str(folder) not in path.read_text(), path

    first = digests(artifacts.EXPORTS)
    run(EVALUATE)
    assert digests(artifacts.EXPORTS) == first


def test_an_export_that_is_refused_is_one_line_and_leaves_the_old_one(after):
    after("lora")
    before = digests(artifacts.EXPORTS)
    workspace.change(adapter="lsr", evaluate={"export": ["lora"]})  # by hand, without training again
    with pytest.raises(UserError) as error:
        run(EVALUATE)
    assert str(error.value) == "params.yaml: evaluate.export: lora: the model has no LSR adapter 'default'"
    assert digests(artifacts.EXPORTS) == before
