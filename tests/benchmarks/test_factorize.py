import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from benchmarks.factorize import __main__ as command
from benchmarks.factorize import stream, summary
from benchmarks.factorize.cases import LOWRANK, SVD, Case, cases, decaying_weight
from benchmarks.factorize.measure import Probe, captured_energy
from benchmarks.processes import in_fresh_process
from pipeline.core.errors import UserError

PRIME = 53  # a width that has to be padded


def leading_energy(matrix, vectors):
    """The share of the energy in so many singular values, a fraction of one included."""
    energies = torch.linalg.svdvals(matrix.double()).square()
    whole = int(vectors)
    return float((energies[:whole].sum() + (vectors - whole) * energies[whole]) / energies.sum())


def test_a_weight_is_the_same_for_one_seed_and_another_for_another():
    first = decaying_weight(PRIME, 1).clone()
    assert torch.equal(decaying_weight.__wrapped__(PRIME, 1), first)
    assert not torch.equal(decaying_weight.__wrapped__(PRIME, 2), first)


def test_the_singular_values_of_a_weight_fall_as_a_power_down_to_a_floor():
    values = torch.linalg.svdvals(decaying_weight(384))
    assert values[0] / values[7] == pytest.approx(8**0.7, rel=0.15)
    assert values[0] / values[200] < 200**0.7 / 1.5


def test_the_captured_energy_is_one_minus_the_squared_error_of_a_fit_without_padding():
    case = Case("principal", 48, (2, 2), 2)
    weight = decaying_weight(48)
    start = case.run(weight)
    captured, _ = captured_energy(case, weight, start)
    assert captured == pytest.approx(1 - start.error**2, rel=1e-6)


def test_a_start_is_beside_an_svd_of_as_many_parameters():
    weight, case = decaying_weight(PRIME), Case("principal", PRIME, (2, 2), 2)
    found = captured_energy(case, weight, case.run(weight))[1]
    assert found == pytest.approx(leading_energy(weight, case.form.parameters / (2 * PRIME)))


def test_the_names_of_the_cases_of_a_size_tell_them_apart():
    for size in command.ROUNDS:
        names = [(case.name, case.rank) for case in cases(size)]
        assert len(set(names)) == len(names)


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds():
    times = {
        Case(SVD, 48): [1.0, 10.0, 3.0],
        Case(LOWRANK, 48, (2, 2)): [1.0, 1.0, 1.0],
        Case(LOWRANK, 48, (4, 4)): [7.0, 7.0, 7.0],
        Case(SVD, 96): [9.0, 9.0, 9.0],
        (case := Case("principal", 48, (2, 2, 1), 2)): [2.0, 30.0, 3.0],
    }
    row = summary.row(case, times, Probe(5, 0.1, 0.2))
    assert (row.seconds, row.to_svd, row.to_lowrank) == (3.0, 2.0, 3.0)
    assert summary.row(Case(SVD, 48), times, Probe(5, None, None)).to_lowrank is None


@pytest.mark.parametrize(
    ("seconds", "peak", "verdict"),
    [
        (2.9, 9 * 10**8, "met"),
        (3.0, 9 * 10**8, "misses time"),
        (2.9, 10**9, "misses memory"),
        (4.0, 2 * 10**9, "misses time and memory"),
    ],
)
def test_a_target_is_met_below_it_in_time_and_in_memory(seconds, peak, verdict):
    assert summary.TARGETS[4096, 16, 16].verdict(seconds, peak) == verdict


def test_the_weights_of_all_shards_are_read_in_bfloat16_and_all_are_different(tmp_path):
    stream.write_shards(tmp_path, 5, 32)
    written = [weight for path in sorted(tmp_path.iterdir()) for weight in load_file(path).values()]
    read = list(stream.read_weights(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert len(read) == len(written) == 10
    assert all(weight.dtype == torch.bfloat16 for weight in read)
    sums = [float(weight.double().sum()) for weight in read]
    assert_close(sorted(sums), sorted(float(weight.double().sum()) for weight in written))
    assert len(set(sums)) == 10


def test_the_memory_of_a_pass_does_not_grow_with_its_layers(tmp_path):
    stream.write_shards(tmp_path, 12, 512)
    few, many = (in_fresh_process(1, stream.start_layers, tmp_path, layers, "principal") for layers in (2, 12))
    kept = 10 * 2 * 512**2 * torch.bfloat16.itemsize  # what it would grow by if it kept what it reads
    assert many.peak - few.peak < kept / 2


def test_a_disk_without_room_for_the_shards_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(UserError, match=r"32 layers need 2\.1 GB, but 1\.0 GB are free; choose fewer with --layers"):
        stream.check_space(tmp_path, 32, 4096)
    stream.check_space(tmp_path, 8, 4096)


def test_a_refusal_is_one_line_and_the_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(SystemExit) as left:
        command.main(["stream"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", [["--layers", "0"], ["--threads", "two"], ["--layers", "-3"]])
def test_a_count_that_is_none_is_refused(option, monkeypatch, capsys):
    for run in ("run_starts", "run_stream"):
        monkeypatch.setattr(command, run, lambda *arguments: None)
    with pytest.raises(SystemExit, match="2"):
        command.main(option)
    assert f"expected a whole number above 0, got {option[1]}" in capsys.readouterr().err


def test_the_command_writes_a_figure_for_each_call_and_each_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = cases(48)[:4]
    monkeypatch.setattr(command, "cases", lambda size: measured)
    command.run_starts({48: 2}, threads=1)
    command.run_stream([1, 2], threads=1, size=64)
    found = json.loads(command.RESULTS.read_text())
    starts = {(row["method"], row["rank"] or 0): row for row in found["starts"]["figures"]}
    assert set(starts) == {(case.name, case.rank) for case in measured}
    assert starts[SVD, 0]["to_svd"] == starts[LOWRANK, 4]["to_lowrank"] == 1
    assert all((row["captured"] is None) == row["method"].startswith("torch.") for row in starts.values())
    passes = [(row["start"], row["layers"]) for row in found["stream"]["figures"]]
    assert passes == [("principal", 1), ("principal", 2)]
    assert found["stream"]["machine"]["threads"] == 1
