"""The checksums of a bank's file from its bytes alone, as the docstring of lsr/serve/file.py describes them."""

import hashlib
import json

BLANK = b"0" * 64


def parts(path):
    """Return the header of a safetensors file as JSON, the bytes of each tensor by name, and the bytes after it."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    data = content[begin:]
    tensors = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items() if name != "__metadata__"}
    return header, tensors, data


def digest(content):
    return hashlib.sha256(content).hexdigest()


def seal(path):
    """Give a bank's file, in which anything may have been changed, the checksums of what it holds now."""
    header, tensors, data = parts(path)
    ((version, text),) = header["__metadata__"].items()
    fields = json.loads(text)
    if not isinstance(fields, dict):
        return
    fields |= {"checksum": BLANK.decode(), "checksums": {name: digest(content) for name, content in tensors.items()}}
    header["__metadata__"] = {version: json.dumps(fields)}
    content = json.dumps(header).encode()
    beginning = len(content).to_bytes(8, "little") + content
    path.write_bytes(beginning.replace(BLANK, digest(beginning).encode(), 1) + data)
