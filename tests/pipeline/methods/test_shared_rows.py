"""Rows of a head that tenants share while an initialization reads examples, against dense layers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.core import artifacts
from pipeline.methods.shared_rows import share_layer, unshare
from pipeline.tasks.groups import Group
from tests import workspace
from tests.kit import write
from tests.references import plain
from tests.stages.running import FACTORIZE, TOKENIZE, run
from tests.stages.shops import LABELS, rows

WIDTH = 5
# Three tenants with two labels, the third in another order, two with a number, and one alone with two labels.
GROUPS = [
    Group(("a", "b"), np.array([0, 2, 4]), np.array([[0, 1], [3, 4], [7, 6]])),
    Group(None, np.array([1, 3]), np.array([[2], [5]])),
]
PLACES = [0, 1, 2, 0, 1, 2, 1, 0, 3, 4]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_begins_with_means_and_its_gradients_are_those_of_a_dense_layer(has_bias, keep):
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, len(PLACES), bias=has_bias, dtype=torch.float64)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    rows = []
    for place in range(5):
        members = [output for output, own in enumerate(PLACES) if own == place]
        rows.append(layer.weight[members].mean(dim=0))
    weight = torch.stack(rows).detach().requires_grad_()
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    logits = torch.stack([x @ weight[place] for place in PLACES], dim=1)
    if has_bias:
        means = [
            np.mean([layer.bias[output].item() for output in range(10) if PLACES[output] == place])
            for place in range(5)
        ]
        logits = logits + torch.tensor([means[place] for place in PLACES], dtype=torch.float64)
    share_layer(layer, GROUPS, has_deviations=False)
    torch.testing.assert_close(layer(x), logits)
    targets = torch.randint(len(PLACES), (7,))
    functional.cross_entropy(logits, targets).backward()
    functional.cross_entropy(layer(x), targets).backward()
    trained = layer.parametrizations.weight
    torch.testing.assert_close(trained[0].rows.grad, weight.grad[:3])
    torch.testing.assert_close(trained.original.grad[8:], weight.grad[3:])
    assert not trained.original.grad[:8].any()
    unshare(layer, keep=keep)
    if keep:
        torch.testing.assert_close(layer(x), logits)
    else:
        assert all(map(torch.equal, layer.parameters(), before))


@pytest.mark.parametrize("head", ["auto", "shared", "own"])
def test_after_a_warm_start_tenants_with_the_same_labels_have_the_same_rows_unless_heads_are_their_own(
    head, tmp_path, monkeypatch
):
    workspace.make(tmp_path, data="shops", adapter="lsr", tenants={"head": head}, lsr={"init": "warm_start"})
    monkeypatch.chdir(tmp_path)
    write("data/shops.csv", rows(LABELS))
    write("data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    run(TOKENIZE, FACTORIZE)
    model = plain.base_model("tiny-roberta", num_labels=7)
    plain.load_head(model, artifacts.INIT)
    weight = model.classifier.out_proj.weight
    acme, bolt, cast = weight[:2], weight[2:5], weight[5:]
    assert torch.equal(acme, cast) == (head != "own")
    assert not torch.equal(acme, bolt[:2])
    assert (weight.std(dim=1) > 0).all()
