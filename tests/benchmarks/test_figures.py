import json
from typing import NamedTuple

from benchmarks import figures


class Row(NamedTuple):
    call: str
    seconds: float


def test_the_results_of_one_part_leave_those_of_the_other(tmp_path):
    path = tmp_path / "results" / "figures.json"
    for part, seconds in [("starts", 1.0), ("stream", 2.0), ("starts", 1 / 3)]:
        figures.publish(path, part, 1, [Row("principal", seconds)])
    found = json.loads(path.read_text())
    assert {part: found[part]["figures"][0]["seconds"] for part in found} == {"starts": 0.333333, "stream": 2.0}
