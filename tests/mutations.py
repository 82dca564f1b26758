"""What may have become of an adapter's folder: hypothesis draws it, as often as a test asks for."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Drawn = TypeVar("Drawn")

WORDS = st.sampled_from(
    ["", "none", "layers", "all-linear", "query", "([a-z0-9.]+)+X", "(", "*", ".*", "é", "\0", "../..", "x" * 2000]
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 25, 10**6, 2**31, 2**63, 10**30, 10**300, 0.5, -1e9, 1e300])
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=5) | st.integers()
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=4)
    | st.dictionaries(WORDS, SCALARS | st.lists(NUMBERS, max_size=3), max_size=3)
)
TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "gone": lambda value: None,
    "empty": lambda value: value[:0],
    "flat": lambda value: value.flatten(),
    "longer": lambda value: torch.cat([value, value]),
    "a number": lambda value: value.flatten()[0].clone(),
    "not finite": lambda value: value / 0,
    "huge": lambda value: torch.full_like(value, 1e38, dtype=torch.float32),
    **{str(dtype): lambda value, dtype=dtype: value.to(dtype) for dtype in (torch.bool, torch.int64, torch.complex64)},
    **{str(dtype): lambda value, dtype=dtype: value.to(dtype) for dtype in (torch.float16, torch.float64)},
}


def examples(strategy: st.SearchStrategy[Drawn], count: int) -> list[Drawn]:
    """Return examples of a strategy, the same ones every time."""
    found: list[Drawn] = []

    @seed(0)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def keep(one: Drawn) -> None:
        found.append(one)

    keep()
    return found


def places(content: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys to every value in nested mappings."""
    for key, inner in content.items() if isinstance(content, dict) else ():
        yield (*where, key)
        yield from places(inner, (*where, key))


@st.composite
def fields(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """Draw the fields of a configuration in which one to three values are others, or missing."""
    changed = json.loads(json.dumps(whole))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        *sections, last = draw(st.sampled_from(sorted(places(changed), key=str)))
        section = changed
        for key in sections:
            section = section[key]
        if draw(st.integers(0, 9)):
            section[last] = draw(VALUES)
        else:
            del section[last]
    return changed


@st.composite
def content(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw the bytes of a file that is cut off or has others in a few places, most often near its begin."""
    changed = bytearray(whole)
    if draw(st.integers(0, 3)) == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(changed), 2000)))
        changed[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed)


@st.composite
def adapters(draw: st.DrawFn, folder: Path) -> tuple[str, dict[str, bytes | tuple[str, str]]]:
    """Draw what is wrong with the adapter of a folder: words for a message, and what `harm` takes."""
    config = (folder / CONFIG).read_bytes()
    match draw(st.sampled_from(["fields", "fields", "tensor", "bytes"])):
        case "fields":
            changed = json.dumps(draw(fields(json.loads(config)))).encode()
            return f"{CONFIG}: {changed!r}", {CONFIG: changed}
        case "tensor":
            name, what = (
                draw(st.sampled_from(sorted(load_file(folder / WEIGHTS)))),
                draw(st.sampled_from(list(TENSORS))),
            )
            return f"{name}: {what}", {WEIGHTS: (name, what)}
        case _:
            file = draw(st.sampled_from([CONFIG, WEIGHTS]))
            return f"{file}: bytes", {file: draw(content((folder / file).read_bytes()))}


def harm(folder: Path, changes: dict[str, bytes | tuple[str, str]]) -> None:
    """Do to an adapter's folder what `adapters` has drawn."""
    for name, change in changes.items():
        path = folder / name
        if isinstance(change, bytes):
            path.write_bytes(change)
            continue
        tensors = load_file(path)
        changed = TENSORS[change[1]](tensors.pop(change[0]))
        save_file(tensors if changed is None else {**tensors, change[0]: changed.contiguous()}, path)
