"""The ways to give each tenant an adapter, and the forms in which adapters are stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.tenants.training import EPOCHS, Shop, Trained, lora, own, together
from examples.tenants import ROWS
from lsr import LsrConfig
from lsr.algebra.frames import leading_frames
from lsr.convert.writing import write
from lsr.loading.contents import read_contents
from lsr.loading.update import Frames, Update

HEAD, OWN, LONGER, SMALL = "head", "LoRA r=8", "LoRA r=8, four passes", "LoRA r=1"
TOGETHER, ON_TOP, POOLED, OTHERS = "one for all", "one for all, LoRA r=8 on top", "pooled frames", "frames of others"
RANK = 4  # of pooled frames: 16 entries of a core in each of 12 layers
Done = Mapping[str, Trained]  # the ways before, with the same seed
Way = Callable[[Shop, Path, float, int, Done], Trained]  # with a new folder, a factor of the rate, and a seed


class Form(NamedTuple):
    """What is stored of a way for each tenant."""

    name: str
    way: str
    passes: int  # over a tenant's texts, with those of the ways that it needs
    squeezed: str | None = None  # to a form of `lsr.squeeze_adapter`
    precision: str = "3bit"
    shared: str | None = None  # in the names of the tensors that all tenants share


def _own(rank: int, shop: Shop, folder: Path, factor: float, seed: int, _: Done, *, epochs: int = EPOCHS) -> Trained:
    return own(shop, folder, lora(rank), factor, seed, epochs=epochs)


def _on_top(shop: Shop, folder: Path, factor: float, seed: int, done: Done) -> Trained:
    return own(shop, folder, lora(8), factor, seed, after=done[TOGETHER])


def _pooled(shop: Shop, folder: Path, factor: float, seed: int, done: Done) -> Trained:
    frames = _between([done[OWN].of(name) for name in shop.tenants], folder / "frames")
    return own(shop, folder, frames, factor, seed)


def _pooled_of_others(shop: Shop, folder: Path, factor: float, seed: int, done: Done) -> Trained:
    found = list[Trained]()
    for name, tenant in shop.tenants.items():
        frames = _between([done[OWN].of(other) for other in shop.tenants if other != name], folder / "frames" / name)
        alone = shop._replace(tenants={name: tenant})
        found.append(own(alone, folder, frames, factor, seed, size=ROWS // len(shop.tenants)))
    held_out = {name: score for one in found for name, score in one.held_out.items()}
    return Trained(str(folder), held_out, sum(one.seconds for one in found))


def _between(folders: Sequence[Path], output: Path) -> LsrConfig:
    """Write frames that hold most of what adapters have learned; return the configuration of a core between them."""
    adapters = [read_contents(folder) for folder in folders]
    updates = dict[str, Update]()
    for layer in adapters[0].updates:
        b, a = leading_frames([one.updates[layer].product() for one in adapters], RANK)
        updates[layer] = Update(Frames(a=a.float(), b=b.float()), RANK, torch.zeros(RANK, RANK))
    write(replace(adapters[0], updates=updates, heads={}, endings=(), task=None), output)
    layers = ["query", "value"]
    return LsrConfig(task_type="SEQ_CLS", rank_shape=(RANK,), train="core", frames=str(output), target_modules=layers)


WAYS: dict[str, Way] = {
    HEAD: lambda shop, folder, _, seed, __: own(shop, folder, lora(1), 0.0, seed),  # B stays zero
    OWN: partial(_own, 8),
    LONGER: partial(_own, 8, epochs=2 * EPOCHS),
    SMALL: partial(_own, 1),
    TOGETHER: lambda shop, folder, factor, seed, _: together(shop, folder, factor, seed),
    ON_TOP: _on_top,
    POOLED: _pooled,
    OTHERS: _pooled_of_others,
}
NEEDS = {ON_TOP: TOGETHER, POOLED: OWN, OTHERS: OWN}  # what it begins with
LIKE = {LONGER: OWN, OTHERS: POOLED}  # whose rate it takes, instead of tries
FORMS = (
    Form("own head", HEAD, 2, shared=".lora_"),
    Form("own LoRA r = 8, as trained", OWN, 2, precision="float32"),
    Form("own LoRA r = 8", OWN, 2),
    Form("own LoRA r = 8, four passes", LONGER, 4),
    Form("own LoRA r = 1", SMALL, 2),
    Form("own LoRA r = 8, squeezed to rank 1", OWN, 2, "rank:1"),
    Form("own LoRA r = 8, squeezed to 12 directions", OWN, 2, "directions:12"),
    Form("own LoRA r = 8, squeezed to shared frames, r = 3", OWN, 2, "shared:3"),
    Form("one LoRA r = 8 for all, own heads", TOGETHER, 2, shared=".lora_"),
    Form("one for all, and an own LoRA r = 8 squeezed to 12 directions", ON_TOP, 4, "directions:12"),
    Form("own cores, 192 numbers, in frames of all", POOLED, 4, shared=".factor_"),
    Form("own cores, 192 numbers, in frames of the other seven", OTHERS, 4, shared=".factor_"),
)
