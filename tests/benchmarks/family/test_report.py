import json
from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmarks.family import picture, report, sizes
from benchmarks.family.checks import checks
from benchmarks.family.methods import GROUPS
from benchmarks.family.summary import Estimate
from tests.benchmarks.family.made_up import REAL
from tests.benchmarks.family.test_checks import row

AHEAD, BEHIND = Estimate(0.01, 0.002, 0.018), Estimate(-0.03, -0.05, -0.01)
SCORES = [0.80, 0.81, 0.79]
TABLE = [
    row("core r=4", SCORES, 192, 37056)._replace(over_first=BEHIND),
    row("pooled core r=4", SCORES, 192, 192)._replace(pooled=36864),
    row("shared r=2", SCORES, 4716, 4716)._replace(over_first=AHEAD, over_second=BEHIND),
    row("LoRA r=1, one layer", SCORES, 1536, 1536)._replace(layers="5"),
    row("LoRA r=1", SCORES, 9216, 9216)._replace(at_edge=True),
    row("every weight", [0.9], 22713216, 22713986),
    row("core r=4", [0.85], 192, 37056, data="movie-pairs"),
]


def test_the_files_say_what_the_rows_say(tmp_path):
    report.write(TABLE, tmp_path / "results")
    found = json.loads((tmp_path / "results/table.json").read_text())
    assert [fields["method"] for fields in found["rows"]] == [row.method for row in TABLE]
    assert found["rows"][2]["over_first_low"] == 0.002
    assert found["rows"][-1]["test_low"] is None
    assert [check["target"] for check in found["checks"]] == [check.target for check in checks(TABLE)]
    for name in ("table", "size"):
        assert imread(tmp_path / f"results/{name}.png").std() > 0


def test_two_reports_have_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        report.write(TABLE, tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        "| method | trained | stored | kB | tweets | movie-pairs |",
        "| core r=4 | 192 | 37,056 | 148.2 | 0.800 ± 0.025 ▼ | 0.850 |",
        "| pooled core r=4 | 192 | 192 + 36,864 | 0.8 | 0.800 ± 0.025 |  |",
        "| shared r=2 | 4,716 | 4,716 | 18.9 | 0.800 ± 0.025 ▲ |  |",
        "## short: movie-pairs",
        "| LoRA r=1 | all | 9,216 | 9,216 | 0.003 (edge) | 0.800 (0.775 to 0.825) | – | – |",
        "| LoRA r=1, one layer | 5 | 1,536 | 1,536 | 0.003 | 0.800 (0.775 to 0.825) | – | – |",
        "- pooled frames, beside LoRA r=1: -0.01: on 1 of 1",
    ],
)
def test_the_markdown_holds(line):
    assert line in "\n".join(report.markdown(TABLE, list(checks(TABLE)))).splitlines()


def test_overviews_are_in_the_order_of_what_they_count():
    trained, size = ([line[0] for line in report.overview(TABLE, counted)] for counted in ("trained", "size"))
    assert trained[:3] == ["core r=4", "pooled core r=4", "LoRA r=1, one layer"]
    assert size[:2] == ["pooled core r=4", "LoRA r=1, one layer"]
    assert size[-2:] == ["core r=4", "every weight"]


def test_the_tables_are_printed(tmp_path, capsys):
    report.write(TABLE, tmp_path)
    printed = capsys.readouterr().out
    assert "shared r=2" in printed
    assert "pooled frames, beside LoRA r=1: -0.01" in printed


def test_markers_of_like_sizes_stand_side_by_side_around_their_mean():
    rows = [TABLE[2], *TABLE[:2], TABLE[3], TABLE[3]._replace(trained=1600)]
    places = [place for _, place in picture._places(rows)]
    assert places == sorted(places)
    assert all(after >= 1.15 * before for before, after in pairwise(places))
    assert places[0] * places[1] == pytest.approx(192**2)
    assert places[2] * places[3] == pytest.approx(1536 * 1600)
    assert places[4] == pytest.approx(4716)


def test_a_picture_of_one_row_is_drawn(tmp_path):
    for one in (TABLE[0], row("head alone", [0.6], 0, 0)):
        for kind in (picture, sizes):
            kind.draw(tmp_path / "one.png", [one])
            assert imread(tmp_path / "one.png").std() > 0


def test_panels_of_one_score_have_one_axis_that_shows_every_mean(tmp_path, monkeypatch):
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kw: (saved.append(figure), save(figure, *args, **kw))
    )
    names = ("tweets", "movie-reviews", "movie-ratings")
    scores = {"tweets": 0.9, "movie-reviews": 0.7, "movie-ratings": 0.4}
    table = [
        row(method, [scores[data]], 192, 192, data=data) for data in names for method in ("core r=4", "head alone")
    ]
    table += [row("core r=4", [0.2], 40000, 192, data="tweets")._replace(protocol="long")]
    picture.draw(tmp_path / "picture.png", table)
    panels = {axes.get_title(): axes for axes in saved[0].axes if axes.get_title()}
    assert list(panels) == list(names)
    assert len({axes.get_xlim() for axes in panels.values()}) == 1
    low, high = panels["tweets"].get_ylim()
    assert panels["movie-reviews"].get_ylim() == (low, high)
    assert 0.6 < low < 0.7 < 0.9 < high < 1
    assert panels["movie-ratings"].get_ylim() == pytest.approx((0.39, 0.41))
    assert [axes.get_ylabel().split()[1] for axes in panels.values()] == ["accuracy", "accuracy", "correlation"]


def test_every_method_but_frames_of_another_data_set_has_a_mark_or_a_line():
    assert {group for group in GROUPS if group not in ("ends", "foreign")} == set(picture.MARKS)
    assert {name for name, method in REAL.items() if method.group == "ends"} == set(picture.LINES)
