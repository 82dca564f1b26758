"""The writers leave the whole new content or the whole old one, and the same bytes every time."""

import pytest

from pipeline import artifacts
from pipeline.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_an_existing_one(tmp_path):
    old = tmp_path / "tokens"
    old.mkdir()
    (old / "stale.csv").write_text("old")
    with artifacts.replacing(old) as folder:
        folder.mkdir()
        (folder / "fresh.csv").write_text("new")
        assert names(old) == ["stale.csv"]
    assert names(old) == ["fresh.csv"]
    assert names(tmp_path) == ["tokens"]


def test_a_folder_keeps_its_old_content_when_the_body_raises(tmp_path):
    old = tmp_path / "tokens"
    old.mkdir()
    (old / "kept.csv").write_text("old")

    def write_half():
        with artifacts.replacing(old) as folder:
            folder.mkdir()
            (folder / "half.csv").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert names(old) == ["kept.csv"]
    assert names(tmp_path) == ["tokens"]


@pytest.mark.parametrize("name", ["thesis.tex", "lora/notes.md", ".git/HEAD", "config.json.orig"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "while it is written"])
def test_a_folder_with_a_file_of_somebody_else_stays(name, early, tmp_path):
    old = tmp_path / "exports"
    old.mkdir()
    (old / "parity.json").write_text("{}")

    def put():
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("mine")

    def replace():
        with artifacts.replacing(old) as folder:
            assert not early, "it is refused before anything is computed"
            folder.mkdir()
            put()

    if early:
        put()
    with pytest.raises(UserError, match=f"holds {old / name}, which no stage writes"):
        replace()
    assert (old / name).read_text() == "mine"
    assert (old / "parity.json").exists()
    assert names(tmp_path) == ["exports"]


def test_a_file_keeps_its_old_content_when_the_body_raises(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write_half():
        with artifacts.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_parent_folders_are_made(tmp_path):
    artifacts.write_metrics(tmp_path / "a/b/metrics.json", {"x": 1})
    assert (tmp_path / "a/b/metrics.json").exists()


def test_metrics_are_sorted_and_have_six_digits(tmp_path):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"b": 1 / 3, "a": 2, "name": "x"})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 0.333333,\n  "name": "x"\n}\n'


def test_a_table_has_a_header_six_digits_and_line_feeds_only(tmp_path):
    path = tmp_path / "lengths.csv"
    artifacts.write_csv(path, ("name", "value"), [("a,b", 1 / 3), ("c", 4)])
    assert path.read_bytes() == b'name,value\n"a,b",0.333333\nc,4\n'
