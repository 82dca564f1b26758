import json

import pytest

from benchmarks.family import store
from pipeline.core.errors import UserError

LINES = [{"key": "a", "test": 0.1}, {"key": "b", "test": 0.2}]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results/cells.jsonl"
    for line in LINES:
        store.append(path, line)
    return path


def test_what_was_appended_is_loaded_by_key(path, tmp_path):
    assert store.load(path) == {line["key"]: line for line in LINES}
    assert store.load(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize("kept", range(len(json.dumps(LINES[1])) + 1))
def test_a_truncated_line_is_dropped_and_the_next_one_is_whole(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n") + 1 + kept])
    assert list(store.load(path)) == ["a"]
    store.append(path, LINES[1])
    assert list(store.load(path)) == ["a", "b"]


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "3"])
def test_a_whole_line_that_is_no_cell_is_an_error_with_its_number(path, text):
    path.write_text(path.read_text() + f"{text}\n" + path.read_text())
    with pytest.raises(UserError, match="line 3 is not a cell"):
        store.load(path)
