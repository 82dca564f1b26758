"""`krona` is one full Kronecker product: PEFT's LoKr, when its rank is above all widths, is exactly that."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from pipeline.methods import table
from pipeline.params import KronaParams
from pipeline.params.rows import ModelRow

ROW = ModelRow.model_validate(
    {"source": {"kind": "hub", "path": "none"}, "target_modules": ["dense"], "head": ["classifier"]}
)
VALUES = {"target_modules": "default", "layers": "all", "learning_rate": 0.1}


class Model(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.dense, self.classifier = nn.Linear(width_in, width_out), nn.Linear(width_out, 2)


@pytest.mark.parametrize(
    ("width_in", "width_out", "factor", "first"),
    [
        (24, 40, "auto", (5, 4)),
        (24, 40, 4, (4, 4)),
        (24, 40, 8, (8, 8)),
        (384, 384, 2, (2, 2)),
        (7, 5, "auto", (1, 1)),
    ],
)
def test_the_update_is_one_kronecker_product_of_full_factors(width_in, width_out, factor, first):
    torch.manual_seed(0)
    base = Model(width_in, width_out).double()
    section = KronaParams.model_validate({"factor": factor, "scale": 0.375, **VALUES})
    config = table.config_of(section, base, ROW, 0)
    config.task_type = None
    layer = get_peft_model(base, config).double().get_submodule("base_model.model.dense")
    (a,), (b,) = layer.lokr_w1.values(), layer.lokr_w2.values()
    assert a.shape == first
    assert (a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]) == (width_out, width_in)
    assert not any((layer.lokr_w1_a, layer.lokr_w2_a, layer.lokr_t2))
    assert bool((a == 0).all()) != bool((b == 0).all())  # so that the other one gets a gradient
    for number, factor_of in enumerate((a, b)):
        factor_of.data = torch.randn(factor_of.shape, dtype=torch.float64) + number
    expected = 0.375 * torch.kron(a, b)
    assert torch.equal(layer.get_delta_weight("default"), expected)
    x = torch.randn(3, width_in, dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base_layer(x) + x @ expected.T, rtol=0, atol=1e-13 * width_in)
