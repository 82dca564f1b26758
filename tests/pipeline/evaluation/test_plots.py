import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from pipeline.evaluation import plots

ROOT = Path(__file__).parents[3]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, for a look at what is in them."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kw: (saved.append(figure), save(figure, *args, **kw))
    )
    return saved


def classes(number, rows=500):
    random = np.random.default_rng(0)
    return random.integers(0, number, rows).tolist(), random.integers(0, number, rows).tolist()


def curves(layers, longest=8):
    return {f"encoder.layer.{k}.self.query": np.linspace(0.9, 0.1, longest - k % 2).tolist() for k in range(layers)}


def chosen(layers, terms=4):
    return dict.fromkeys(curves(layers), terms)


def frames(kinds, longest=8, rank=3, terms=False):
    rising = {"gradient, own frames": 0.9, "gradient, shared frames": 0.7, "weight, own frames": 0.3}
    curves = {name: (np.linspace(0, 1, longest + 1)[1:] ** (1 - most)).tolist() for name, most in rising.items()}
    by_terms = {1: 0.1, 2: 0.3, 4: 0.8} if terms else {}
    return {f"encoder.layer.*.self.part{k}": plots.Frames(curves, rank, by_terms) for k in range(kinds)}


def trained(epochs):
    by_epoch = [(20 * (epoch + 1), 1 / (epoch + 1)) for epoch in range(epochs)]
    return {"loss": [(5 * (k + 1), 2 / (k + 1)) for k in range(4 * epochs)]} | dict.fromkeys(
        ("validation_loss", "validation_score"), by_epoch
    )


DRAWINGS = {
    "two classes": lambda path: plots.confusion_matrix(path, *classes(2), ["no", "yes"], "two"),
    "thirty classes": lambda path: plots.confusion_matrix(
        path, *classes(30), [f"class {k}" for k in range(30)], "many"
    ),
    "numbers": lambda path: plots.scatter(path, [0.0, 2.0, 5.0], [1.0, 2.5, 4.0], 0, 5, "numbers"),
    "few layers": lambda path: plots.separation_curves(path, curves(3), chosen(3), "few"),
    "a note": lambda path: plots.note(path, "nothing to draw here"),
    "many layers": lambda path: plots.separation_curves(path, curves(24), chosen(24), "many"),
    "frames of one kind": lambda path: plots.captured_energies(path, frames(1), "one"),
    "a training": lambda path: plots.training_curves(path, trained(3), 60, "accuracy", "three epochs"),
    "a training of many epochs": lambda path: plots.training_curves(path, trained(80), 20, "f1", "many"),
    "frames of many kinds": lambda path: plots.captured_energies(path, frames(14, terms=True), "many"),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_picture_has_the_same_bytes_every_time(draw, tmp_path):
    draw(tmp_path / "first.png")
    draw(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "second.png"]


def test_a_picture_does_not_depend_on_the_users_matplotlibrc(tmp_path):
    drawing = "plots.scatter(Path({!r}), [0, 1], [1, 0], 0, 1, 't')"
    code = f"from pathlib import Path; from pipeline.evaluation import plots; {drawing}"
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 9\nsavefig.facecolor: red\n")
    for name, rc in (("plain.png", os.devnull), ("odd.png", str(tmp_path / "matplotlibrc"))):
        environment = os.environ | {"MATPLOTLIBRC": rc}
        command = [sys.executable, "-c", code.format(str(tmp_path / name))]
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_picture_carries_no_version_and_no_date(draw, tmp_path):
    draw(tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    assert not any(chunk in content for chunk in (b"tEXt", b"iTXt", b"tIME", b"atplotlib"))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_nothing_is_cut_at_the_edge_of_a_picture(draw, tmp_path):
    draw(tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")[..., :3]
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 1).all() for edge in edges)
    assert (pixels < 1).any()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_no_letter_is_smaller_than_nine_points(draw, tmp_path, figures):
    draw(tmp_path / "picture.png")
    sizes = [text.get_fontsize() for text in figures[0].findobj(lambda artist: hasattr(artist, "get_fontsize"))]
    assert min(sizes) >= 9


def test_a_cell_says_count_and_share_of_its_row(tmp_path, figures):
    actual, predicted = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]
    plots.confusion_matrix(tmp_path / "picture.png", actual, predicted, ["no", "yes"], "two")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["3\n75%", "1\n25%", "0\n0%", "2\n100%"]


def test_rows_are_actual_classes_and_columns_predicted_ones(tmp_path, figures):
    plots.confusion_matrix(tmp_path / "picture.png", [0, 0, 2], [1, 1, 2], ["a", "b", "c"], "three")
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("actual class", "predicted class")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_cells_too_small_for_numbers_have_none(tmp_path, figures):
    for number in (12, 13):
        plots.confusion_matrix(tmp_path / "picture.png", *classes(number), ["name"] * number, "many")
    assert [len(figure.axes[0].texts) for figure in figures] == [144, 0]


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_class_without_a_name_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"class numbers must be in \[0, 1\], got"):
        plots.confusion_matrix(tmp_path / "picture.png", [0, 1], [0, wrong], ["no", "yes"], "two")
    assert not list(tmp_path.iterdir())


def test_the_axes_of_a_scatter_show_every_point_and_the_whole_range(tmp_path, figures):
    plots.scatter(tmp_path / "picture.png", [0.0, 1.0], [-3.0, 9.0], -1, 5, "numbers")
    plots.scatter(tmp_path / "picture.png", [2.0, 3.0], [2.0, 3.0], -1, 5, "numbers")
    wide, whole = (figure.axes[0].get_xlim() for figure in figures)
    assert wide == figures[0].axes[0].get_ylim()
    assert (wide[0] < -3, wide[1] > 9) == (True, True)
    assert (-2 < whole[0] < -1, 5 < whole[1] < 6) == (True, True)


def test_the_more_points_the_more_transparent(tmp_path, figures):
    for points in (20, 2000, 200_000):
        plots.scatter(tmp_path / "picture.png", [0.0] * points, [1.0] * points, 0, 1, "numbers")
    alphas = [figure.axes[0].collections[0].get_alpha() for figure in figures]
    assert alphas == sorted(alphas, reverse=True)
    assert len(set(alphas)) == 3


def test_a_curve_starts_at_separation_rank_one(tmp_path, figures):
    plots.separation_curves(tmp_path / "picture.png", {"q": [0.5, 0.2, 0.0]}, {"q": 2}, "one")
    curve, mark = figures[0].axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 0.5], [2, 0.2], [3, 0.0]]
    assert mark.get_xdata() == [2, 2]


def test_up_to_twelve_layers_have_a_legend_and_more_a_color_bar(tmp_path, figures):
    for layers in (12, 13):
        plots.separation_curves(tmp_path / "picture.png", curves(layers), chosen(layers), "layers")
    few, many = figures
    assert [text.get_text() for text in few.legends[0].get_texts()] == [str(k) for k in range(12)]
    assert (len(few.axes), len(many.axes), many.legends) == (1, 2, [])
    assert many.axes[1].get_ylabel() == "layer, from first to last"


def test_the_chosen_rank_is_in_the_picture_even_beyond_the_curves(tmp_path, figures):
    plots.separation_curves(tmp_path / "picture.png", curves(2), chosen(2, 20), "beyond")
    assert figures[0].axes[0].get_xlim()[1] > 20


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["layer.0.self.query", "layer.0.self.value", "layer.1.self.query"], ["0.query", "0.value", "1.query"]),
        (["layer.0.self.query", "layer.0.dense"], ["self.query", "dense"]),
        (["encoder.layer.0.self.query"], ["self.query"]),
    ],
)
def test_a_legend_names_only_what_differs(names, shown):
    assert plots.distinct_parts(names) == shown


def test_drawing_needs_no_window_system():
    code = "import sys, pipeline.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_picture_of_the_readme_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs/picture.py"))["draw"]()
    assert (ROOT / "docs/lsr.svg").read_text(encoding="utf-8") == drawn


def test_different_separation_ranks_are_dots_without_a_line(figures, tmp_path):
    terms = dict(zip(curves(2), (2, 5), strict=True))
    plots.separation_curves(tmp_path / "picture.png", curves(2), terms, "dots")
    lines = figures[-1].axes[0].lines
    assert [line.get_markevery() for line in lines] == [[1], [4]]


def test_a_panel_a_kind_shows_each_curve_from_rank_one_with_a_dot_at_the_chosen_rank(figures, tmp_path):
    plots.captured_energies(tmp_path / "picture.png", frames(2), "two")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["part0", "part1"]
    for axes, one in zip(panels, frames(2).values(), strict=True):
        *lines, mark = axes.lines
        assert [line.get_xydata().tolist() for line in lines] == [
            [[rank, energy] for rank, energy in enumerate(curve, 1)] for curve in one.curves.values()
        ]
        assert [line.get_markevery() for line in lines] == [[2]] * 3
        assert list(mark.get_xdata()) == [3, 3]
        assert axes.get_ylim() == (0, 1)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [*one.curves, "rank of this adapter"]


def test_frames_of_kronecker_terms_have_a_line_over_their_number(figures, tmp_path):
    plots.captured_energies(tmp_path / "picture.png", frames(1, terms=True), "one")
    dotted = figures[0].axes[0].lines[3]
    assert dotted.get_xydata().tolist() == [[1, 0.1], [2, 0.3], [4, 0.8]]
    assert dotted.get_label() == "at this rank, by Kronecker terms"


def test_the_first_twelve_kinds_have_a_panel(figures, tmp_path):
    plots.captured_energies(tmp_path / "picture.png", frames(14), "many")
    assert [axes.get_title() for axes in figures[0].axes] == [f"part{k}" for k in range(12)]


def test_a_training_shows_both_losses_the_score_and_the_best_step(tmp_path, figures):
    plots.training_curves(tmp_path / "picture.png", trained(3), 40, "accuracy", "three epochs")
    upper, lower = figures[0].axes
    assert [line.get_xydata().tolist() for line in upper.lines[:2]] == [
        [list(point) for point in trained(3)[name]] for name in ("loss", "validation_loss")
    ]
    assert lower.get_ylabel() == "validation accuracy"
    assert [axes.lines[-1].get_xdata() for axes in (upper, lower)] == [[40, 40], [40, 40]]
