"""What the chosen rows name on this disk is told by content, or refused where DVC would not notice a change."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.params.rows import DatasetRow, HubModel, ModelRow, PackageModel
from pipeline.params.sources import FilesSource, HubSource
from stages import inputs as stage


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository with the two folders, as the working directory."""
    folder = tmp_path / "repository"
    for name in stage.WATCHED:
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def files(**paths):
    return FilesSource(kind="files", files=paths)


def row(path):
    label = {"column": "label", "names": ["bad", "good"]}
    cut = {"validation": 0.1, "test": 0.1}
    return DatasetRow(source=files(train=path), text=["text"], label=label, metrics=["accuracy"], cut=cut)


def sha256(content):
    return hashlib.sha256(content.encode()).hexdigest()


def refusal(source):
    with pytest.raises(UserError) as error:
        stage.inputs(source, "table: mine")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("table: mine: ")
    return str(error.value)


def test_files_are_told_by_their_content():
    Path("data/a.csv").write_text("a")
    Path("data/b.csv").write_text("b")
    Path("data/other.csv").write_text("c")
    found = stage.inputs(files(train="data/a.csv", test="data/b.csv"), "")
    assert found == {"data/a.csv": sha256("a"), "data/b.csv": sha256("b")}


@pytest.mark.parametrize("kind", [HubModel, HubSource])
def test_a_folder_is_told_by_all_its_files_but_hidden_ones(kind):
    Path("models/mine/deep").mkdir(parents=True)
    Path("models/mine/.cache").mkdir()
    for name in ("config.json", "deep/x", ".hidden", ".cache/y"):
        Path("models/mine", name).write_text(name)
    splits = {"splits": {"train": "train"}} if kind is HubSource else {}
    found = stage.inputs(kind(kind="hub", path="models/mine", **splits), "")
    assert found == {"models/mine/config.json": sha256("config.json"), "models/mine/deep/x": sha256("deep/x")}


@pytest.mark.parametrize(
    "source",
    [
        HubModel(kind="hub", path="FacebookAI/roberta-base"),
        HubSource(kind="hub", path="nyu-mll/glue", splits={"train": "train"}),
        PackageModel(kind="package", package="a==1", folder="a", sha256="0" * 64, same_as="b/c"),
    ],
)
def test_what_lies_elsewhere_has_no_file_here(source):
    assert stage.inputs(source, "") == {}


@pytest.mark.parametrize("source", [files(train="data/no"), HubModel(kind="hub", path="models/no")])
def test_what_is_not_there_is_refused(source):
    assert "/no: not found; paths start at the root of the repository" in refusal(source)


def test_a_pipe_and_a_device_are_no_files():
    Path("data").mkdir(exist_ok=True)
    os.mkfifo("data/pipe.csv")
    Path("data/zero.csv").symlink_to("/dev/zero")
    for name in ("data/pipe.csv", "data/zero.csv"):
        assert refusal(files(train=name)).endswith(f"{name}: not a file")


def test_a_temporary_copy_that_lacks_a_file_says_how_to_bring_it(repository, monkeypatch):
    (repository.parent / "original/data").mkdir(parents=True)
    (repository.parent / "original/data/a.csv").write_text("a")
    monkeypatch.setenv("DVC_ROOT", str(repository.parent / "original"))
    message = refusal(files(train="data/a.csv"))
    assert f"data/a.csv: not found here, but in {repository.parent}/original: an experiment with --temp" in message
    assert message.endswith("git add data/a.csv, or name it by its absolute path")


@pytest.mark.parametrize("path", ["a.csv", "data/../a.csv", "../repository/data/a.csv"])
def test_a_file_that_dvc_does_not_watch_is_refused(path):
    for name in ("a.csv", "data/a.csv"):
        Path(name).write_text("a")
    assert f"{path}: DVC notices changes only in data/ and models/; move it there" in refusal(files(train=path))


@pytest.mark.parametrize("path", ["mine", "."])
def test_a_folder_beside_the_watched_ones_is_refused(path):
    Path("mine").mkdir()
    assert f"{path}: DVC notices changes only in data/ and models/" in refusal(HubModel(kind="hub", path=path))


def test_a_link_to_a_file_is_followed_and_one_to_a_folder_is_refused(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a.csv").write_text("a")
    Path("data/a.csv").symlink_to(tmp_path / "far/a.csv")
    Path("data/far").symlink_to(tmp_path / "far")
    assert stage.inputs(files(train="data/a.csv"), "") == {"data/a.csv": sha256("a")}
    for source in (files(train="data/far/a.csv"), HubModel(kind="hub", path="data/far")):
        assert "data/far: DVC does not follow a link to a folder; link its files one by one" in refusal(source)


def test_an_absolute_path_is_read_with_a_word_of_what_dvc_does_not_see(tmp_path, capfd):
    (tmp_path / "a.csv").write_text("a")
    assert stage.inputs(files(train=str(tmp_path / "a.csv")), "table: mine") == {f"{tmp_path}/a.csv": sha256("a")}
    assert f"table: mine: {tmp_path}/a.csv: DVC does not notice changes of files outside" in capfd.readouterr().out


def test_the_stage_writes_a_file_a_row():
    Path("data/a.csv").write_text("a")
    view = params.InputsView.model_construct(
        data="mine",
        model="tiny",
        dataset=row("data/a.csv"),
        base_model=ModelRow(source={"kind": "hub", "path": "a/b"}, target_modules=["query"], head=["classifier"]),
        frames="own",
        pooled={},
    )
    stage.main(view)
    assert json.loads(artifacts.DATA_FILES.read_text()) == {"data/a.csv": sha256("a")}
    (told,) = json.loads(artifacts.MODEL_FILES.read_text()).items()
    assert told[0] == "pipeline/models.yaml: tiny"
    stage.main(view.model_copy(update={"base_model": view.base_model.model_copy(update={"head": ("score",)})}))
    assert json.loads(artifacts.MODEL_FILES.read_text())[told[0]] != told[1]
    assert json.loads(artifacts.FRAMES_FILES.read_text()) == {}


def view_of_model(folder):
    Path(folder).mkdir()
    Path(folder, "config.json").write_text("{}")
    Path("data/a.csv").write_text("a")
    return params.InputsView.model_construct(
        data="mine",
        model=folder,
        dataset=DatasetRow.model_validate(row("data/a.csv")),
        base_model=ModelRow.named(folder, "params.yaml: model"),
        frames="own",
        pooled={},
    )


def test_a_model_that_is_named_itself_is_told_by_its_files():
    stage.main(view_of_model("models/mine"))
    found = json.loads(artifacts.MODEL_FILES.read_text())
    assert found.keys() == {"params.yaml: model: models/mine", "models/mine/config.json"}
    assert found["models/mine/config.json"] == sha256("{}")


def test_a_mistake_in_a_model_that_is_named_itself_names_it_once():
    with pytest.raises(UserError) as error:
        stage.main(view_of_model("mine"))
    assert str(error.value) == "params.yaml: model: mine: DVC notices changes only in data/ and models/; move it there"


def view_of(frames="own", **pooled):
    return params.InputsView.model_construct(frames=frames, pooled=pooled)


def test_pooled_rows_are_told_by_what_they_say_and_by_their_files():
    Path("data/a.csv").write_text("a")
    Path("data/b.csv").write_text("b")
    usual = row("data/a.csv")
    found = stage.frames_inputs(view_of(one=usual, other=row("data/b.csv")))
    names = [f"pipeline/datasets.yaml: {name}" for name in ("one", "other")]
    assert found.keys() == {*names, "data/a.csv", "data/b.csv"}
    assert found["data/b.csv"] == sha256("b")
    assert stage.frames_inputs(view_of(one=usual))[names[0]] == found[names[0]]
    turned = usual.model_copy(update={"cut": dict(reversed(usual.cut.items()))})  # DVC writes keys in another order
    assert list(turned.cut) != list(usual.cut)
    assert stage.frames_inputs(view_of(one=turned)) == stage.frames_inputs(view_of(one=usual))
    changed = usual.model_copy(update={"metrics": ("f1",)})
    assert stage.frames_inputs(view_of(one=changed))[names[0]] != found[names[0]]
    with pytest.raises(UserError, match=r"pipeline/datasets.yaml: one: data/no.csv: not found; paths start at"):
        stage.frames_inputs(view_of(one=row("data/no.csv")))


def test_frames_in_a_folder_are_told_by_its_files_and_those_of_a_hub_by_none():
    Path("models/family").mkdir()
    Path("models/family/adapter_config.json").write_text("{}")
    assert stage.frames_inputs(view_of("models/family")) == {"models/family/adapter_config.json": sha256("{}")}
    assert stage.frames_inputs(view_of("someone/family")) == {}


@pytest.mark.parametrize("path", ["artifacts/init", "models/../family", "../family"])
def test_frames_where_dvc_does_not_watch_are_refused(path):
    for folder in ("artifacts/init", "family", "../family"):
        Path(folder).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        stage.frames_inputs(view_of(path))
    alone = "DVC notices changes only in data/ and models/; move it there"
    assert str(error.value) == f"params.yaml: lsr.frames: {path}: {alone}"


def test_a_folder_of_frames_that_is_not_there_is_refused():
    with pytest.raises(UserError) as error:
        stage.frames_inputs(view_of("models/no"))
    assert (
        str(error.value) == "params.yaml: lsr.frames: models/no: not found; paths start at the root of the repository"
    )
