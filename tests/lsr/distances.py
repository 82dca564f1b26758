"""How far the updates of two models are from each other, layer by layer and in all, beside what a certificate says."""

import pytest
import torch


def adapters_of(layer):
    """What an LSR or a LoRA layer holds by adapter name."""
    return layer.lsr_adapters if hasattr(layer, "lsr_adapters") else layer.scaling


def updates(model):
    """The update of each layer by its name in the base model, in float64; of an LSR or a LoRA adapter."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
        and "default" in getattr(module, "lsr_adapters", getattr(module, "scaling", ()))
    }


def check_certificate(certificate, model, loaded, most):
    """Assert that each error is the distance of the loaded model's update from the model's, and at most `most`."""
    before, after = updates(model), updates(loaded)
    assert before.keys() == after.keys() == certificate.layers.keys()
    for name, update in before.items():
        shown = certificate.layers[name]
        assert shown.error == pytest.approx(float((after[name] - update).norm() / update.norm()), abs=1e-5)
        assert shown.error <= most
    missing, whole = (
        torch.cat([value.flatten() for value in values])
        for values in ([after[name] - before[name] for name in before], before.values())
    )
    assert certificate.error == pytest.approx(float(missing.norm() / whole.norm()), abs=1e-5)
