"""Source distributions, which pip fetches from a folder, so without a network; archives in installed parts."""

import hashlib
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZipFile

import pytest

from pipeline.core.errors import UserError
from pipeline.data import packages
from pipeline.params.model_row import Archive
from tests.kit import refused
from tests.pipeline.data.rows import package_index, tar_gz

PYPROJECT = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = b"""
import pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder, "toydata-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: toydata\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*args, **kwargs): raise SystemError
"""


@pytest.fixture
def sdist() -> bytes:
    inner = tar_gz({"deep/words.txt": "é\n".encode(), "deep/other.txt": b""})
    return tar_gz(
        {
            "toydata-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n",
            "toydata-1.0/pyproject.toml": PYPROJECT,
            "toydata-1.0/backend.py": BACKEND,
            "toydata-1.0/inner.tar.gz": inner,
        }
    )


@pytest.fixture
def index(tmp_path, monkeypatch, sdist):
    """A folder that stands for the package index, with a source distribution."""
    folder = package_index(tmp_path, monkeypatch)
    (folder / "toydata-1.0.tar.gz").write_bytes(sdist)
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_fetched_file_is_kept_and_used_again_without_the_index(index, sdist):
    path = packages.fetch("toydata==1.0", sha256(sdist))
    (index / "toydata-1.0.tar.gz").unlink()
    assert packages.fetch("toydata==1.0", sha256(sdist)) == path
    assert path.read_bytes() == sdist
    assert [file.name for file in path.parent.iterdir()] == ["toydata-1.0.tar.gz"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    with pytest.raises(UserError, match=r"^toydata==1.0: pip cannot fetch it; put the file at .*") as error:
        packages.fetch("toydata==1.0", "0" * 64)
    (line,) = error.value.args  # a long path is cut in the line that is printed
    assert f"Expected sha256 {'0' * 64}" in line
    assert f"put the file at {tmp_path / 'cache/lsr-adapt/toydata-1.0.tar.gz'}" in line
    assert "\n" not in line
    assert not list((tmp_path / "cache/lsr-adapt").iterdir())


def test_a_file_is_read_from_an_archive_in_the_archive_and_a_near_one_named(tmp_path, sdist):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(sdist)
    assert packages.read_member(archive, ("toydata-1.0/inner.tar.gz", "deep/words.txt")) == "é\n".encode()
    says = "a.tar.gz: no file 'toydata-1.0/iner.tar.gz'; did you mean toydata-1.0/inner"
    refused(packages.read_member, archive, ("toydata-1.0/iner.tar.gz", "deep/words.txt"), says=says)


@pytest.fixture
def halves(tmp_path, monkeypatch):
    """An archive whose halves lie in two installed packages, and an empty cache."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("model/config.json", "é" * 50)
    content = buffer.getvalue()
    for name, half in (("half-of_1", content[:70]), ("half-of_2", content[70:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the code of the package was run')")
        (tmp_path / name / "zip").write_bytes(half)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "below/it/cache"))
    return Archive(parts=("half-of_1/zip", "half-of_2/zip"), sha256=sha256(content))


def test_an_archive_is_unpacked_once_by_whoever_comes_first_and_stays(halves, tmp_path, capsys):
    with ThreadPoolExecutor(4) as threads:
        (folder,) = set(threads.map(lambda _: packages.unpacked("halves==1.0", halves), range(4)))
    assert capsys.readouterr().out == f"unpacking halves==1.0 into {folder}\n"
    shutil.rmtree(tmp_path / "half-of_2")
    assert packages.unpacked("halves==1.0", halves) == folder
    assert (folder / "model/config.json").read_text(encoding="utf-8") == "é" * 50


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "half-of_2/zip; install what it requires: pip install halves==1.0"),
        (lambda path: path.write_bytes(b""), "halves==1.0: its parts make an archive with sha256 "),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_one_line_and_keeps_nothing(damage, words, halves, tmp_path):
    damage(tmp_path / "half-of_2/zip")
    refused(packages.unpacked, "halves==1.0", halves, says=words)
    assert [path.name for path in (tmp_path / "below").rglob("*") if path.is_file()] == ["halves-1.0.lock"]
