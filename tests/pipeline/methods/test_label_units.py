"""Heads that learn standardized numbers, against plain layers that learn numbers standardized before."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.methods.label_units import standardize
from pipeline.tasks.facts import Facts, LabelScale
from pipeline.tasks.number import compute_squared_errors

WIDTH = 6
STEPS = 40
UNITS = [(0.0, 1.0), (2015.0, 5.0), (350_000.0, 120_000.0), (-0.004, 0.0001)]  # years, prices, shares of yields


def layers(has_bias):
    """Two equal layers in float64, their inputs, and standardized labels."""
    torch.manual_seed(0)
    first = nn.Linear(WIDTH, 1, bias=has_bias, dtype=torch.float64)
    second = nn.Linear(WIDTH, 1, bias=has_bias, dtype=torch.float64)
    second.load_state_dict(first.state_dict())
    x = torch.randn(30, WIDTH, dtype=torch.float64)
    y = x @ torch.randn(WIDTH, dtype=torch.float64) + torch.randn(30, dtype=torch.float64)
    return first, second, x, (y - y.mean()) / y.std(correction=0)


def fit(layer, loss):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.parametrize(("mean", "deviation"), UNITS)
def test_it_learns_what_a_plain_layer_learns_of_numbers_standardized_before(mean, deviation):
    layer, plain, x, standardized = layers(has_bias=True)
    with torch.no_grad():
        layer.weight.mul_(deviation)
        layer.bias.mul_(deviation).add_(mean)
    labels = standardized * deviation + mean
    scale = LabelScale.of(labels.numpy())
    assert (scale.mean, scale.deviation) == pytest.approx((mean, deviation), abs=1e-9 * deviation)
    with standardize(layer, scale):
        fit(layer, lambda: compute_squared_errors(layer(x), labels, scale).mean())
    fit(plain, lambda: nn.functional.mse_loss(plain(x)[:, 0], standardized))
    expected = plain(x) * deviation + mean
    torch.testing.assert_close(layer(x) / deviation, expected / deviation, rtol=1e-5, atol=1e-5)


def test_without_a_bias_it_learns_in_units_of_the_root_mean_square():
    layer, plain, x, standardized = layers(has_bias=False)
    labels = standardized * 30.0 + 40.0
    scale = LabelScale(mean=40.0, deviation=30.0)
    with torch.no_grad():
        layer.weight.mul_(50.0)
    with standardize(layer, scale):
        fit(layer, lambda: compute_squared_errors(layer(x), labels, scale).mean())
    fit(plain, lambda: ((plain(x)[:, 0] - labels / 50.0) * 50.0 / 30.0).square().mean())
    torch.testing.assert_close(layer(x), plain(x) * 50.0, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_predicts_the_same_within_and_after(has_bias):
    layer, plain, x, _ = layers(has_bias)
    with standardize(layer, LabelScale(mean=2015.0, deviation=5.0)):
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-10)
    assert not layer._forward_hooks


def test_outputs_in_bfloat16_keep_the_digits_below_a_large_mean():
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 1)
    x = torch.randn(50, WIDTH)
    with torch.no_grad():
        layer.weight.mul_(5.0)
        layer.bias.mul_(5.0).add_(2015.0)
    expected = layer(x)
    with standardize(layer, LabelScale(mean=2015.0, deviation=5.0)), torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x)
    assert (outputs - expected).abs().max() < 0.1  # neighbors of 2,015 in bfloat16 are 8 apart


def test_labels_keep_their_digits_with_outputs_in_bfloat16():
    labels = torch.arange(2000.0, 2030.0)
    outputs = torch.full((30, 1), 2016.0, dtype=torch.bfloat16)
    errors = compute_squared_errors(outputs, labels, None)
    torch.testing.assert_close(errors, (labels - 2016.0).square(), rtol=0, atol=0)


@pytest.mark.parametrize("number", [7.0, 0.1])  # the mean of 30 times 0.1 is not 0.1
def test_equal_numbers_have_a_deviation_of_one(number):
    scale = Facts().with_label_scale(np.full(30, number)).label_scale
    assert (scale.mean, scale.deviation) == (pytest.approx(number), 1.0)
