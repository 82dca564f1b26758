"""What a stage shows while it runs."""

import sys
import warnings

from pipeline import params, stage
from tests import workspace


def warn_of_much(view):
    assert view.adapter == "lsr"
    warnings.warn("one layer has\nmany parameters", stacklevel=1)


def test_what_a_library_warns_of_is_one_line_that_begins_with_the_stage(tmp_path, monkeypatch, capsys):
    workspace.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(sys, "argv", ["stage"])
    capsys.readouterr()  # the workspace was written
    stage.run(warn_of_much, params.TrainView)
    assert capsys.readouterr() == ("test-stage: one layer has many parameters\n", "")
