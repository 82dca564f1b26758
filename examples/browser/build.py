"""Build a page that classifies texts in the browser: `python examples/browser/build.py GRAPHS -o FOLDER`.

GRAPHS is a folder that `lsr export --to onnx` has written. The page and its model then lie in FOLDER, which any web
server can serve; the page fetches nothing from elsewhere. transformers.js and the runtime that it needs come from npm,
once; the SHA-256 of both is checked here.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# By the package on npm, pinned: the SHA-256 of its archive, and what the page needs of it. The version of the runtime
# is the one that this version of transformers.js names.
PACKAGES = {
    "@huggingface/transformers@4.3.2": (
        "5414fb47b11ae2a8c10a3aac68f833e6fb6e9bde03e9e612ad7da3ea9e9d2663",
        ("transformers.web.min.js",),
    ),
    "onnxruntime-web@1.31.0-dev.20260914-8d85527a0": (
        "0de27582f3e3189dec4a2082513a0af1ea79ae7fd3039bbfe634a526e173cbe0",
        ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    ),
}
GRAPH = "onnx/model_quantized.onnx"  # the page uses the one in 8 bits
MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", GRAPH)
TASK = "task.json"  # of one adapter
TENANTS = "tenants.json"  # in its place, of a bank


def main() -> None:
    """Build the page."""
    parser = argparse.ArgumentParser(description="Build a page that classifies texts in the browser.")
    parser.add_argument("graphs", type=Path, metavar="GRAPHS", help="what `lsr export --to onnx` has written")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the page is built")
    options = parser.parse_args()
    has_tenants = (options.graphs / TENANTS).is_file()
    needed = (*MODEL, TENANTS if has_tenants else TASK)
    missing = [name for name in needed if not (options.graphs / name).is_file()]
    if missing:
        parser.exit(2, f"{options.graphs}: no {missing[0]}; needed: a folder that `lsr export --to onnx` has written\n")
    options.output.mkdir(parents=True, exist_ok=True)
    stamp = options.output / "packages.json"  # of the packages whose files are there
    pinned = json.dumps(PACKAGES, indent=2)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != pinned:
        if shutil.which("npm") is None:
            parser.exit(2, "npm, a part of Node.js, is not installed; it fetches transformers.js\n")
        for package, (sha256, files) in PACKAGES.items():
            fetch(package, sha256, files, options.output)
        stamp.write_text(pinned, encoding="utf-8")
    shutil.copy(HERE / "index.html", options.output)
    for name in needed:
        target = options.output / "model" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.graphs / name, target)
    (options.output / "model/page.json").write_text(json.dumps({"tenants": has_tenants}), encoding="utf-8")
    print(f"{options.output}: built; serve it by: python -m http.server --directory {options.output}")


def fetch(package: str, sha256: str, files: tuple[str, ...], folder: Path) -> None:
    """Write some files of a package on npm into a folder; end with a line if its archive has another SHA-256."""
    print(f"fetching {package} from npm", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", "--silent", "--pack-destination", temporary, package]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 pinned words, no shell
        archives = list(Path(temporary).iterdir())
        if run.returncode or len(archives) != 1:
            sys.exit(f"npm cannot fetch {package}: {run.stderr.strip()}")
        actual = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if actual != sha256:
            sys.exit(f"{package}: has SHA-256 {actual}, not {sha256}")
        with tarfile.open(archives[0]) as archive:
            for name in files:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())


if __name__ == "__main__":
    main()
