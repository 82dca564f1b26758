import json
import os

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig

from benchmarks.speed import __main__ as command
from benchmarks.speed import dtypes, growth, layer, many, many_report, race, report, step, terms, timing
from benchmarks.speed.methods import FROZEN, METHODS, OURS, PEER, TEXTBOOK, adapted, trained
from pipeline.params import changed
from tests import workspace

SMALL = layer.Case(64, 8, "float32")
TINY = BertConfig(vocab_size=30000, hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)


# Methods


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_layer_of_every_method_gives_what_the_frozen_one_gives(method):
    layers, x, _ = layer._operands(SMALL, (method,))
    base = layer._operands(SMALL, (FROZEN,))[0][FROZEN]
    assert_close(layers[method](x), base(x))
    assert bool(trained(layers[method])) == (method != FROZEN)


def test_the_textbook_layer_is_the_fused_one_with_its_gradients():
    torch.manual_seed(0)
    model = adapted(nn.Sequential(nn.Linear(96, 95, dtype=torch.float64)), OURS, ["0"])
    fused = model.base_model.model[0]
    with torch.no_grad():
        fused.adapter("default").factor_B1.normal_()
    plain = adapted(nn.Sequential(nn.Linear(96, 95, dtype=torch.float64)), TEXTBOOK, ["0"]).base_model.model[0]
    plain.base_layer = fused.base_layer
    values = fused.adapter("default").factors()
    for own, side in zip((plain.a, plain.b), values, strict=True):
        for parameter, value in zip(own, side, strict=True):
            parameter.data.copy_(value)
    x = torch.randn(3, 96, dtype=torch.float64)
    assert_close(plain(x), fused(x))
    both = [[*plain.a, *plain.b], [*values[0], *values[1]]]
    ours, theirs = (
        torch.autograd.grad(which(x).square().sum(), wanted) for which, wanted in zip((plain, fused), both, strict=True)
    )
    for one, two in zip(ours, theirs, strict=True):
        assert_close(one, two)


# Times


def test_calls_take_turns_and_the_first_round_does_not_count():
    called, rounds = [], []
    times = timing.take_turns(
        {name: lambda name=name: called.append(name) for name in "ab"}, 3, lambda: rounds.append(len(called))
    )
    assert called == list("abababab")
    assert rounds == [2, 4, 6, 8]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_the_second_of_two_calls_in_a_row_is_timed():
    called = []
    times = timing.take_turns(
        {name: lambda name=name: called.append(name) for name in "ab"}, 1, lambda: None, twice=True
    )
    assert called == list("aabbaabb")
    assert {name: len(found) for name, found in times.items()} == {"a": 1, "b": 1}


def test_an_overhead_is_what_is_added_to_the_base_over_what_the_peer_adds():
    times = {"base": [1.0, 10.0, 1.0], "peer": [3.0, 12.0, 3.0], "own": [1.5, 10.5, 9.0]}
    assert timing.overhead(times, "own", "base", "peer") == 0.25
    assert timing.overhead(times, "peer", "base", "peer") == 1
    assert timing.ratio(times["peer"], times["base"]) == 3


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (report.Target("x", 0.2, 0.2), "x: 0.20 (at most 0.2: met)"),
        (report.Target("x", 0.21, 0.2), "x: 0.21 (at most 0.2: missed)"),
        (report.Target("x", 1.2, 1.15, at_most=False), "x: 1.20 (at least 1.15: met)"),
        (report.Target("x", 1.1, 1.15, at_most=False), "x: 1.10 (at least 1.15: missed)"),
    ],
)
def test_a_target_says_what_became_of_it(target, verdict):
    assert target.line == verdict


def test_the_bound_is_the_slower_of_moving_and_computing():
    case = layer.Case(4, 10, "float32")
    by_bytes = layer.Rates(1.0, {"float32": 1e12})
    by_flops = layer.Rates(1e12, {"float32": 1.0})
    assert layer.bound(case, by_bytes) == (4 * 10 * 4 + 2 * 16) * 4
    assert layer.bound(case, by_flops) == 4 * 10 * 16


# The parts


def test_more_terms_are_timed_over_one_term(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(terms, "WIDTH", 96)
    monkeypatch.setattr(terms, "TOKENS", 8)
    monkeypatch.setattr(terms, "SEPARATION_RANKS", (1, 3))
    grown = terms.growth(rounds=2)
    assert [row.separation_rank for row in grown] == [1, 3]
    assert grown[0].overhead == 1
    side = terms.side(96, (2, 2), 2, 5, 2)
    monkeypatch.setattr(terms, "run", lambda *arguments: [*grown, side])
    monkeypatch.setattr(command, "RESULTS", tmp_path / "speed.json")
    command.run_terms(threads=1)
    assert "overhead of 3 terms over one term's" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "speed.json").read_text())["terms"]["figures"]) == 3


def test_a_step_changes_what_trains_and_nothing_else(monkeypatch):
    monkeypatch.setitem(step.SHAPES, "MiniLM", TINY)
    model = step._model(step.Case("MiniLM", "q, v", "float32"), OURS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    call = step.step(model, 4, 6)
    for _ in range(3):
        call()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier", "factor_A1", "factor_B2"} <= {part for name in changed for part in name.split(".")}


@pytest.mark.parametrize("case", [case for case in step.CASES if case.model == "MiniLM"])
def test_a_step_runs_with_every_method(case, monkeypatch):
    monkeypatch.setitem(step.SHAPES, "MiniLM", TINY)
    monkeypatch.setitem(step.BATCHES, "MiniLM", (2, 4))
    times, sizes = step.times(case, rounds=1)
    assert set(times) == set(sizes) == set(METHODS)
    assert sizes[FROZEN] == 0
    assert sizes[OURS] == sizes[TEXTBOOK] > sizes["LSR r=4 s=1"]
    assert sizes[PEER] == 8 * sizes["LoRA r=1"]


def test_the_weights_of_a_step_have_its_dtype_and_libraries_choose_that_of_adapters(monkeypatch):
    monkeypatch.setitem(step.SHAPES, "MiniLM", TINY)
    for method in METHODS:
        model = step._model(step.Case("MiniLM", step.ALL_LINEAR, "bfloat16"), method)
        frozen = [value for value in model.parameters() if not value.requires_grad]
        assert {value.dtype for value in frozen if value.shape in {(96, 96), (128, 96)}} == {torch.bfloat16}
        assert {value.dtype for value in step._parameters(model)[0]} <= {torch.float32}


def test_of_the_frozen_model_gradients_reach_the_first_layer(monkeypatch):
    monkeypatch.setitem(step.SHAPES, "MiniLM", TINY)
    model = step._model(step.Case("MiniLM", "q, v", "float32"), FROZEN)
    seen = []
    model.get_submodule("bert.encoder.layer.0.attention.self.query").register_full_backward_hook(
        lambda *call: seen.append(call[1][0])
    )
    step.step(model, 2, 4)()
    assert seen[0].abs().max() > 0
    assert not any(name.startswith("bert") for name, value in model.named_parameters() if value.grad is not None)


FAMILY = {
    "rank_shape": [3],
    "separation_rank": 1,
    "share": "layers",
    "train": "all",
    "init": "gradient",
    "examples": 40,
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A workspace with a tiny RoBERTa and made-up sentences, and the adapter of the default run."""
    monkeypatch.chdir(workspace.make(tmp_path, lsr=FAMILY))
    monkeypatch.setattr(race, "DATA", ("glue",))
    monkeypatch.setattr(race, "TARGETS", {"glue": 0.0})
    monkeypatch.setattr(race, "MODEL", "tiny")
    monkeypatch.setattr(race, "LOOKS", 10)
    for cache in (changed._committed, changed._row):
        cache.cache_clear()
    yield
    for cache in (changed._committed, changed._row):
        cache.cache_clear()


@pytest.mark.parametrize("contender", [race.OURS, race.PEER], ids=lambda contender: contender.name)
def test_a_race_scores_before_the_first_step_and_on_the_way(contender, tiny):
    found = race.race("glue", contender)
    assert found.trained == (2 * 2 * 3 * 24 + 4 * 3**2 if contender.adapter == "lsr" else 4 * 8 * 2 * 24)
    assert len(found.seconds) == len(found.steps) == len(found.scores)
    assert list(found.seconds) == sorted(found.seconds)
    assert found.seconds[0] > 0
    assert found.steps[:2] == (0, 1)
    assert len(found.steps) > 2
    assert all(0 <= score <= 1 for score in found.scores)


def finishes(name, scores, seconds):
    return race.Row("tweets", name, 10, seconds, tuple(range(10, 10 * len(scores) + 1, 10)), scores)


def test_the_target_of_a_race_is_a_share_of_what_the_better_one_ends_with(monkeypatch, capsys):
    monkeypatch.setattr(race, "DATA", ("tweets",))
    rows = [
        finishes(race.OURS.name, (0.5, 0.77, 0.79), (1.0, 2.0, 3.0)),
        finishes(race.PEER.name, (0.5, 0.7, 0.8), (1.0, 2.0, 4.0)),
    ]
    assert race.target(rows, "tweets") == pytest.approx(0.76)
    assert [row.reached(0.76) for row in rows] == [(2.0, 20), (4.0, 30)]
    assert [(one.found, one.wanted) for one in report.race_targets(rows)] == [(0.5, 0.7)]
    late = [rows[0]._replace(scores=(0.5, 0.5, 0.5)), rows[1]]
    assert [one.line.endswith("inf (at most 0.7: missed)") for one in report.race_targets(late)] == [True]
    report.show_race(late)
    assert "not reached" in capsys.readouterr().out
    alone = [rows[0]._replace(scores=(0.5, 0.77, 1.0)), rows[1]]
    assert race.target(alone, "tweets") == pytest.approx(0.95)
    (line,) = [one.line for one in report.race_targets(alone)]
    assert line.endswith("ours over LoRA's (not reached: all of its time): 0.75 (at most 0.7: missed)")
    monkeypatch.setattr(race, "TARGETS", {"tweets": 0.8})
    assert race.target(rows, "tweets") == 0.8


def test_the_picture_of_a_race_has_a_panel_per_data_set(tmp_path):
    rows = [
        finishes(contender.name, (0.5, 0.7), (1.0, 2.0))._replace(data=data)
        for data in race.DATA
        for contender in (race.OURS, race.PEER)
    ]
    report.draw_race(tmp_path / "race.png", rows)
    assert (tmp_path / "race.png").stat().st_size > 10_000


def test_the_command_writes_figures_and_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "speed.json")
    monkeypatch.setattr(command, "PICTURE", tmp_path / "speed.png")
    monkeypatch.setattr(layer, "WITH_MEMORY", SMALL[:2])
    monkeypatch.setattr(report, "SHOWN", SMALL)
    command.run_layer([SMALL], threads=1, rounds=2)
    rows = [
        step.Row("RoBERTa-base", "all linear", dtype, method, 1, 0.5, 2.0, 1.2, 1.3, 0.8, peak)
        for dtype, peak in (("float32", 10**6), ("bfloat16", None))
        for method in METHODS
    ]
    monkeypatch.setattr(step, "run", lambda *arguments: rows)
    command.run_step([], threads=1, rounds=1)
    command.draw()
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["method"] for row in found["layer"]["figures"]] == list(METHODS)
    assert all(row["peak_bytes"] is not None for row in found["layer"]["figures"])
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "overhead over LoRA r=8's, forward and backward" in shown
    assert "step, RoBERTa-base, all linear, bfloat16: method" in shown
    assert "RoBERTa-base, bfloat16, all linear, examples/s over LoRA r=1's: 1.30 (at least 1: met)" in shown
    assert "| 80%" in shown
    assert "RoBERTa-base, float32, all linear, examples/s over LoKr's: 1.00 (at least 1.4: missed)" in shown
    assert "RoBERTa-base, float32, all linear, peak over LoRA r=8's: 1.00 (at most 1: met)" in shown
    assert "RoBERTa-base, bfloat16, all linear, peak" not in shown


@pytest.fixture
def few(monkeypatch):
    """A tiny model of two layers, and three rows of few tokens."""
    monkeypatch.setitem(step.SHAPES, "MiniLM", BertConfig(**TINY.to_diff_dict() | {"num_hidden_layers": 2}))
    for name, value in {"ROWS": 3, "LENGTHS": (4,), "LOADED": 2}.items():
        monkeypatch.setattr(many, name, value)


@pytest.mark.parametrize("what", growth.GROWING)
def test_what_a_size_costs(what, few, tiny):
    sizes, _ = growth.GROWING[what]
    row = growth.measure(what, min(sizes[0], 40), rounds=1)
    assert row.what == what
    assert row.seconds > 0
    assert row.peak_bytes >= 0
    assert sizes[-1] >= 100 * sizes[0]


def test_growth_has_the_exponent_of_its_power_law(monkeypatch, tmp_path, capsys):
    rows = [growth.Row("tokens", size, 3e-3 * size**1.5, 10**6) for size in (1, 10, 100)]
    monkeypatch.setattr(growth, "run", lambda *arguments: rows)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "speed.json")
    command.run_growth(threads=1, cases=(), rounds=1)
    assert "exponent | 1.5 | 0" in capsys.readouterr().out


def test_many_adapters_are_served_by_every_way(few, capsys):
    rows = [*many.serve(1, rounds=1), *many.serve(5, rounds=1)]
    assert [row.method for row in rows] == 2 * [many.MERGED, many.ALONE, *many.FORMS, many.PEER]
    smallest = {row.adapters: row for row in rows if row.method == many.SMALLEST}
    an_adapter = 4 * (4 * 16 + 2 * 97)  # directions of two query and two value layers, and a head
    assert smallest[5].bytes_beyond_base - smallest[1].bytes_beyond_base == 4 * an_adapter
    peers = {row.adapters: row.bytes_an_adapter for row in rows if row.method == many.PEER}
    assert peers == dict.fromkeys((1, 5), 4 * (4 * 8 * 2 * 96 + 2 * 97))
    many_report.show(rows)
    assert "many: MiniLM, 3 rows of 4 tokens, 5 adapters" in capsys.readouterr().out


def test_loading_is_timed_at_both_ends(few, capsys):
    rows = many.loading(5)
    assert [(row.method, row.adapters) for row in rows] == [(many.PEER, 6), *((form, 5) for form in many.FORMS)]
    assert [row.file_seconds is None for row in rows] == [True, False, False, False]
    many_report.show(rows)
    assert "many: ms to load" in capsys.readouterr().out


def test_targets_of_many_are_told_with_what_the_base_model_leaves():
    rows = [
        many.Row(4, method, count, 1.0, 64.0, 1.2, speed, size, None)
        for count in (256, 1024)
        for method, speed, size in ((many.MERGED, 12.0, None), (many.SMALLEST, 11.0, 5_000_000))
    ]
    shown = f"{many.SMALLEST}, 4 tokens, 256 adapters"
    assert [target.line for target in many_report.targets(rows)] == [
        f"{shown}, examples/s over those of PEFT's loop (the merged model alone: 12.00): 11.00 (at least 10: met)",
        f"{shown}, time over one adapter's: 1.20 (at most 1.3: met)",
        f"{many.SMALLEST}, 1024 adapters, MB: 5.00 (at most 16: met)",
    ]


def test_a_part_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["laier"])
    assert "expected one of layer, terms, step, race, many, growth, got laier" in capsys.readouterr().err


def test_all_cores_are_used_unless_asked_otherwise():
    assert command._options([]).threads == os.cpu_count()
    assert command._options(["--threads", "1", "step"]) == command._options(["step", "--threads", "1"])


@pytest.mark.parametrize("cases", [layer.CASES, step.CASES])
def test_bf16_is_left_out_in_plain_words_where_it_would_take_hours(cases, monkeypatch, capsys):
    monkeypatch.setattr(dtypes.emulated, "is_needed", lambda: False)
    assert dtypes.affordable("step", cases) == cases
    assert not capsys.readouterr().out
    monkeypatch.setattr(dtypes.emulated, "is_needed", lambda: True)
    assert {case.dtype for case in dtypes.affordable("step", cases)} == {"float32"}
    assert "step: bf16 is left out" in capsys.readouterr().out
