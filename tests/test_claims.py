"""Each claim that tests/README.md lists names tests that there are."""

import ast
import re

from tests.workspace import ROOT


def test_every_test_that_a_claim_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "tests/README.md").read_text(encoding="utf-8"))
    assert len(named) > 70
    trees = {path: ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8")) for path, _ in named}
    functions = {(path, one.name) for path, tree in trees.items() for one in tree.body if hasattr(one, "name")}
    assert set(named) <= functions
