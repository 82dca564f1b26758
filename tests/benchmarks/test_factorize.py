"""The cost of a start from the pretrained weight: what is captured, what is compared, and what the command writes."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import factorize
from benchmarks.factorize import LOWRANK, PRINCIPAL, SVD, Case, decaying_weight
from lsr.algebra.separable import kron_sum

SIZE = 48


def test_the_singular_values_of_a_weight_fall_as_a_power_down_to_a_floor():
    values = torch.linalg.svdvals(decaying_weight(384))
    assert values[0] / values[7] == pytest.approx(8**0.7, rel=0.15)
    assert values[0] / values[200] < 200**0.7 / 1.5


def test_the_captured_energy_is_one_minus_the_squared_error_of_the_update():
    case, weight = Case(PRINCIPAL, SIZE, (2, 2)), decaying_weight(SIZE)
    start = case.run(weight)
    left = (weight - kron_sum(*start.b)[:SIZE] @ kron_sum(*start.a)[:, :SIZE]).double().square().sum()
    assert 1 - start.error**2 == pytest.approx(1 - float(left / weight.double().square().sum()), rel=1e-5)
    assert 1 - start.error**2 < factorize.captured_by_svd(weight, case.form.parameters) < 1


def test_the_svd_beside_it_has_as_many_parameters_a_fraction_of_a_vector_included():
    weight = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    assert factorize.captured_by_svd(weight, 6) == pytest.approx(4 / 6)
    assert factorize.captured_by_svd(weight, 9) == pytest.approx(4.5 / 6)


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds():
    case = Case(PRINCIPAL, SIZE, (2, 2))
    row = factorize.row(case, {Case(SVD, SIZE): [1.0, 10.0, 3.0], case: [2.0, 30.0, 3.0]}, 5, 0.1, 0.2)
    assert (row.seconds, row.to_svd, row.rank, row.separation_rank) == (3.0, 2.0, 4, 4)


def test_the_command_writes_a_figure_for_each_decomposition(tmp_path, monkeypatch):
    monkeypatch.setattr(factorize, "RESULTS", tmp_path / "factorize.json")
    monkeypatch.setattr(factorize, "TERMS", {(2, 2): 2})
    monkeypatch.setattr(factorize, "process", lambda threads, module: ThreadPoolExecutor(1))
    monkeypatch.setattr(factorize, "in_fresh_process", lambda threads, call, *arguments: call(*arguments))
    monkeypatch.setattr(factorize, "ROUNDS", {SIZE: 2})
    factorize.main(["--threads", "1"])
    rows = json.loads((tmp_path / "factorize.json").read_text())["starts"]["figures"]
    assert [(row["method"], row["rank"]) for row in rows] == [(SVD, None), (LOWRANK, 4), (PRINCIPAL, 4)]
    assert [row["captured"] is None for row in rows] == [True, True, False]
    assert rows[0]["to_svd"] == 1
