"""Open data files as bytes or text; compressed ones are unpacked up to a limit."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from lsr_onnx.errors import first_line

# A compressed file may unpack to this many bytes, or to this many times its own size if that is more: of texts it is
# three to ten times, and of a file that is made to fill a disk or memory a thousand times and more.
UNPACKED_BYTES = 100_000_000
UNPACKED_TIMES = 100
DAMAGED = (EOFError, lzma.LZMAError, zlib.error)  # errors of damaged files besides OSError and ValueError


def check_is_file(path: Path, start: str) -> None:
    """Check that a file exists; `start` names, for messages, the folder of relative paths.

    Raises:
        ValueError: if it does not exist, or is a folder or a pipe, which may be endless.
    """
    if not path.is_file():
        raise ValueError("not a file" if path.exists() else f"not found; paths start at {start}")


def most_unpacked(path: Path) -> int:
    """Return the maximum number of bytes to which a compressed file may unpack."""
    return max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)


def too_large(most: int) -> str:
    """Return the message that a compressed file unpacks to more bytes than allowed."""
    allowed = f"allowed: {UNPACKED_BYTES:,} or {UNPACKED_TIMES} times its own size, whichever is more"
    return f"unpacks to more than {most:,} bytes; {allowed}; if you trust it, unpack it first"


def open_bytes(path: Path) -> BinaryIO:
    """Open a file to read its bytes, unpacked if it is compressed."""
    unpack = UNPACKERS.get(path.suffix.lower())
    if unpack is None:
        return path.open("rb")
    return io.BufferedReader(_Unpacked(unpack(path), most_unpacked(path)))


def open_text(path: Path, encoding: str | None = None) -> TextIO:
    """Open a file to read lines, which end at line feeds only; the default is UTF-8 with or without BOM."""
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="\n")


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file, at most `most`."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._stream.read(len(buffer))
        except DAMAGED as error:
            raise ValueError(f"cannot be unpacked: {first_line(error)}") from None
        self._done += len(content)
        if self._done > self._most:
            raise ValueError(too_large(self._most))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _open_zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa  # pyarrow is installed anyway; Python has zstd from 3.14

    return pa.input_stream(str(path), compression="zstd")


UNPACKERS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
