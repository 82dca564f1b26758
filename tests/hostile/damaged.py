"""Ways in which an adapter's folder can be wrong: each changes a whole folder, and has what every reader says of it.

A stranger may have made the folder, so nothing in it is trusted: not its JSON, nor its shapes, nor its tensors.
"""

import json
import math
import os
import pickle
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS
from tests.kit import edit, write

LONG = "([a-z0-9.]+)+X"  # a pattern that takes years to match with the name of a layer
DEEP = "[" * 400 + "]" * 400  # which Python parses, and cannot copy
FACTOR = ".factor_A1"
CORE = ".core"
HEAD = "classifier.out_proj.bias"
# Readers that do not look at a part of a folder, and so do not mind.
NO_HEADS = ("read_contents", "quantize", "compress")
NO_TASK = ("load_adapter", "load_onto")
# Readers that do not let the base model end an answer.
NO_MODEL = (*NO_TASK, "read_contents", "export", "merged", "quantize", "compress", "predict", "score", "init")
ROUND = ("quantize",)  # what it takes for tensors alone, if they are not LSR's
BY_PEFT = ("load_adapter", "load_onto", "predict", "score", "quantize")  # a LoRA of which PEFT makes something
BOTH = ("lsr", "lora")
LORA = ("lora",)
SUMS = ("sums",)
ROUNDED_ONE = ("rounded",)


class Damage(NamedTuple):
    """What becomes of a folder, and words of which some are in the line that each reader says of it."""

    change: Callable[[Path], object]
    says: str | tuple[str, ...]
    of: tuple[str, ...] = ("lsr",)  # what the folder holds: cores, sums, a LoRA, or what is rounded
    unseen: tuple[str, ...] = ()  # readers that do not look there


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def config(**fields):
    return lambda folder: edit(folder / CONFIG, **fields)


def resolved(**fields):
    """Other shapes of the layers: of all, or of the first one alone."""

    def change(content):
        content["resolved"]["usual"] |= fields

    return lambda folder: edit(folder / CONFIG, change)


def task(**fields):
    return lambda folder: edit(folder / TASK, **fields)


def content(name, content):
    return lambda folder: write(folder / name, content)


def content_in(name, text):
    """Write another field into a JSON object."""
    return lambda folder: write(folder / name, f'{(folder / name).read_text().rstrip()[:-1]}, "more": {text}}}')


def without(name):
    return lambda folder: (folder / name).unlink()


def pipe(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Explosive()))


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def tensor(part, change):
    """Change the first tensor that has this pattern in its name; None removes it."""

    def apply(tensors):
        name = min(name for name in tensors if re.search(part, name))
        value = change(tensors.pop(name))
        return tensors if value is None else {**tensors, name: value.contiguous()}

    return lambda folder: edit(folder / WEIGHTS, apply)


def wide(folder):
    """A LoRA of a rank that its layers cannot have."""
    edit(folder / CONFIG, r=25)
    edit(folder / WEIGHTS, lambda held: {name: _wider(name, value) for name, value in held.items()})


def _wider(name, value):
    axis = int("lora_B" in name)
    return torch.cat([value] * 4, dim=axis).narrow(axis, 0, 25).contiguous() if "lora_" in name else value


def head_alone(folder):
    edit(folder / WEIGHTS, lambda held: {name: value for name, value in held.items() if "classifier" in name})


def more(**tensors):
    return lambda folder: edit(folder / WEIGHTS, lambda held: held | tensors)


def index(content):
    """Another index of rounded tensors: what it says of them decides how the others are read."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    packed = torch.tensor(list(zlib.compress(text)), dtype=torch.uint8)
    return lambda folder: edit(folder / ROUNDED, lambda held: held | {"index": packed})


def no_index(folder):
    edit(folder / ROUNDED, lambda held: {name: value for name, value in held.items() if name != "index"})


def rounded(name, change):
    return lambda folder: edit(folder / ROUNDED, lambda held: held | {name: change(held[name])})


DAMAGES = {
    # The folder
    "nothing there": Damage(shutil.rmtree, ("no such folder", "no such adapter here", "models/it: not found"), BOTH),
    "no configuration": Damage(without(CONFIG), f"{CONFIG} is missing", BOTH),
    "no weights": Damage(without(WEIGHTS), f"{WEIGHTS}: no such file", BOTH),
    "a pipe": Damage(pipe(CONFIG), f"{CONFIG}: not a file"),
    "a pipe of weights": Damage(pipe(WEIGHTS), f"{WEIGHTS}: not a file"),
    "a pickle": Damage(pickled, "adapter_model.bin: a pickle, which can execute arbitrary code, so", BOTH),
    # The configuration, as JSON
    "no JSON": Damage(content(CONFIG, "{"), f"{CONFIG}: not valid JSON", BOTH),
    "a deep file": Damage(content(CONFIG, "[" * 100_000), f"{CONFIG}: not valid JSON: maximum recursion depth"),
    "deep values": Damage(content_in(CONFIG, DEEP), "more than 50 values within one another", BOTH),
    "a deep task": Damage(content_in(TASK, DEEP), f"{TASK}: more than 50 values within", BOTH, NO_TASK),
    "a large file": Damage(config(task_type="x" * 8_000_000), f"{CONFIG}: a file of over 8,000,000 bytes"),
    "a list": Damage(content(CONFIG, "[1]"), "not an adapter's configuration, it names no peft_type"),
    "no method": Damage(config(peft_type=3), "not an adapter's configuration, it names no peft_type"),
    "a method that nobody knows": Damage(config(peft_type="LORAX"), "LORAX", BOTH, ROUND),
    "code of another": Damage(config(megatron_config={"a": 1}, megatron_core="evil"), "megatron_config", BOTH),
    "a base that is a number": Damage(config(base_model_name_or_path=3), "base_model_name_or_path: must be a string"),
    # The configuration of a method
    "no ranks": Damage(config(rank_shape=[0]), "rank_shape must hold one or two ranks >= 1"),
    "a rank that is text": Damage(config(rank_shape="3"), "rank_shape must hold one or two ranks >= 1, got ['3']"),
    "a huge rank": Damage(config(rank_shape=[10_000_000]), "the rank must be in [1, 24]"),
    "more ranks": Damage(config(rank_shape=[2, 2]), "train='core' needs one rank in rank_shape"),
    "a scaling of nan": Damage(config(alpha=math.nan), "alpha must be a positive number of at most 1e+30"),
    "terms that do not go": Damage(config(separation_rank=2), "separation_rank must be in [1, 1] for "),
    "a pattern that is none": Damage(config(rank_pattern={"(": [2]}), "'(' is not a valid regular expression"),
    "many patterns": Damage(config(alpha_pattern={f"x{at}": 1 for at in range(2001)}), "2,001 patterns", BOTH),
    "a long pattern": Damage(config(target_modules="x|" * 250_001), "1 patterns of 500,002 characters", BOTH),
    **{
        f"{field} that takes long": Damage(config(**{field: value}), f"{field}: '", BOTH)
        for field, value in {
            "rank_pattern": {"(e|.)" * 40 + "X": 8},
            "alpha_pattern": {"query": 4, LONG: 1},
            "target_modules": LONG,
            "exclude_modules": ".*.*.*.*.*.*.*.*X",
            "layers_pattern": [LONG],
            "modules_to_save": ["classifier", "(?=e)(?:.|..)*X"],
        }.items()
    },
    "an unknown word": Damage(config(train="cores"), "train must be one of ['factors', 'core', 'all'], got 'cores'"),
    "frames elsewhere": Damage(config(frames="./other"), "of an early adapter is not supported"),
    "no shapes": Damage(config(resolved=None), "resolved: the configuration does not contain the shapes"),
    "shapes of another type": Damage(config(resolved="a\nb"), "resolved: not the layer shapes of a saved adapter"),
    "shapes that hold no width": Damage(resolved(out_shape=[2]), "out_shape must hold as many sizes as rank_shape"),
    "larger layers": Damage(resolved(out_features=10**9, out_shape=[10**9]), "its configuration has 3,000,000,072"),
    "a huge rank of sums": Damage(config(rank_shape=[10_000_000, 2]), "its configuration has 240,000,032", SUMS),
    "other terms": Damage(config(separation_rank=3), ("factor_A1 is (2, 2, 6)", "from checkpoint, the shape in"), SUMS),
    "sums that hold no width": Damage(resolved(out_shape=[2, 2]), "out_shape must hold as many sizes as rank", SUMS),
    # The tensors
    "cut off": Damage(cut(WEIGHTS, 2000), f"{WEIGHTS}: corrupt or cut off", BOTH),
    "empty": Damage(cut(WEIGHTS, 0), f"{WEIGHTS}: corrupt or cut off"),
    "not a number": Damage(tensor(".query.*A", lambda value: value / 0), "holds values that are not finite", BOTH),
    "complex": Damage(tensor(".query.*A", lambda value: value.to(torch.complex64)), "values of complex64", BOTH),
    "a missing factor": Damage(tensor(FACTOR, lambda value: None), "factor_A1"),
    "a missing core": Damage(tensor(CORE, lambda value: None), "core"),
    "no factors": Damage(head_alone, "factors"),
    "a factor that is turned": Damage(tensor(FACTOR, lambda value: value.mT), "factor_A1"),
    "a longer core": Damage(tensor(CORE, lambda value: value.repeat(2, 1)), "core"),
    "a narrower head": Damage(
        tensor("out_proj.weight", lambda held: held[:, 1:]), ("size mismatch", "a head is"), unseen=NO_HEADS
    ),
    "an unexpected tensor": Damage(more(more=torch.ones(3)), "more is not part of", unseen=NO_HEADS),
    "a head without its bias": Damage(tensor(HEAD, lambda value: None), f"{HEAD} is missing", unseen=NO_HEADS),
    # What the pipeline wrote beside them
    "a task that is no JSON": Damage(content(TASK, "{"), f"{TASK}: not valid JSON", BOTH, NO_TASK),
    "a task that is a list": Damage(content(TASK, "[]"), f"{TASK}: must be an object", unseen=NO_TASK),
    "half a character of a name": Damage(config(base_model_name_or_path="\ud800"), "contains a lone surrogate", BOTH),
    "half a character": Damage(task(labels=["a", "\ud800"]), "lone surrogate", unseen=NO_TASK),
    "more labels": Damage(
        task(labels=["a", "b", "c"]), ("label", "predicts a b c"), unseen=(*NO_TASK, *NO_HEADS, "export")
    ),
    # What a task may hold is bounded, as each answer repeats the names of labels
    **{
        words: Damage(task(**fields), says, unseen=NO_TASK)
        for words, fields, says in [
            ("long labels", {"labels": ["x" * 3_000_000, "y" * 3_000_000]}, "3,000,000 characters; at most 200 are"),
            ("a label that is a little too long", {"labels": ["a", "b" * 201]}, "201 characters; at most 200 are"),
            ("many labels", {"labels": [str(at) for at in range(10_001)]}, "10,001 names; at most 10,000 are"),
            ("labels of many bytes", {"labels": [f"{at:05}" + "é" * 150 for at in range(220)]}, "at most 64,000 are"),
            ("a label of a tenant that is long", {"labels": None, "tenants": {"a": ["x" * 201]}}, "at most 200 are"),
            ("a tenant with a long name", {"labels": None, "tenants": {"a" * 201: None}}, "at most 200 are"),
            (
                "many tenants",
                {"labels": None, "tenants": dict.fromkeys(map(str, range(100_001)))},
                "at most 100,000 are",
            ),
            ("ends as in earlier versions", {"ends": [7]}, "ends is now called stop_token_ids; rename it in the file"),
            ("many ends", {"stop_token_ids": [7] * 100_000}, "100,000 tokens; at most 16 are allowed"),
            (
                "an end that no integer holds",
                {"stop_token_ids": [10**30]},
                "stop_token_ids must be a list of tokens by number",
            ),
            ("a long template", {"template": "x" * 100_001}, "100,001 characters; at most 100,000 are allowed"),
            ("a huge length", {"max_length": 10**300}, "max_length must be a positive whole number of at most"),
            ("columns that are no names", {"columns": [["text"]]}, "columns must be a list of names"),
            ("a long column", {"columns": ["x" * 100_001]}, "100,001 characters; at most 100,000 are allowed"),
            ("a long kind of task", {"kind": "x" * 1000}, "1,000 characters; at most 200 are allowed"),
            ("a large field that nobody reads", {"more": ["x"] * 100_000}, "in fields that nothing reads"),
        ]
    },
    "an end that is not in the vocabulary": Damage(
        task(stop_token_ids=[10**6]), "stop_token_ids has token 1000000", unseen=NO_MODEL
    ),
    # LoRA
    "magnitudes": Damage(config(use_dora=True), ("use_dora=True is not supported", "magnitude_vector"), LORA, ROUND),
    "an option of tomorrow": Damage(config(tomorrow=3), "tomorrow=3 is not supported", LORA, BY_PEFT),
    "another rank": Damage(config(r=5), ("has rank 8, but its configuration has 5", "size mismatch"), LORA, ROUND),
    "a rank of no such layer": Damage(wide, "the rank must be in [1, 24]", LORA, BY_PEFT),
    "a huge alpha": Damage(config(lora_alpha=10**400), "too large", LORA, ROUND),
    "one of two factors": Damage(tensor("lora_B.weight", lambda value: None), "lora_B", LORA, ROUND),
    "embeddings": Damage(more(**{"base_model.model.x.lora_embedding_A": torch.ones(2, 3)}), "embedding_A", LORA, ROUND),
    "a pattern that is a list": Damage(config(rank_pattern=["q"]), "'list' object", LORA, ROUND),
    "a start that changes the base": Damage(config(init_lora_weights="pissa"), "='pissa' is not", LORA, BY_PEFT),
    "a start that never ends": Damage(
        config(init_lora_weights="pissa_niter_1000000000"), ("init_lora_weights",), LORA, ROUND
    ),
    "a start by data that are not here": Damage(config(init_lora_weights="corda"), ("init_lora_weights",), LORA, ROUND),
    "layers again and again": Damage(config(layer_replication=[[0, 10**9]]), "layer_replication", LORA, ROUND),
    "a rank of zero": Damage(config(r=0), ("`r` should be", "configuration has 0"), LORA, ROUND),
    # Tensors that are rounded
    "no index": Damage(no_index, "it has no uint8 index", ROUNDED_ONE),
    "an unknown kind": Damage(index(["3bit", {"a": {"b": ["bool", 9]}}]), "['bool', 9] is not one of", ROUNDED_ONE),
    "counters that are not there": Damage(index(["3bit", {"a": ["int64", 5]}]), "the index has", ROUNDED_ONE),
    "a broken index": Damage(rounded("index", lambda value: value.flip(0)), "index is broken", ROUNDED_ONE),
    "a bomb": Damage(index(b" " * 9_000_000), "index is broken: cut off, or over 1,000,000", ROUNDED_ONE),
    "a deep index": Damage(index(b'["3bit",' + b'{"a":' * 100_000), "index is broken", ROUNDED_ONE),
    "an index of more": Damage(index(["3bit", {"a": ["values", 10**15]}]), "but the index has", ROUNDED_ONE),
    "an unknown precision": Damage(index(["7bit", {}]), "the precision must be one of", ROUNDED_ONE),
    "fewer values": Damage(rounded("values", lambda value: value[:-1].clone()), "the index has", ROUNDED_ONE),
    "rounded and cut off": Damage(cut(ROUNDED, 200), f"{ROUNDED}: corrupt or cut off", ROUNDED_ONE),
}


def change_bytes(content, chance):
    """Return a file's bytes with a flipped bit, mostly, or bytes that are replaced, exchanged, removed or added."""
    content = bytearray(content)
    at = chance.randrange(len(content))
    other = chance.randrange(len(content))
    length = chance.randint(1, min(64, len(content) - max(at, other)))
    kind = chance.choice(("bit", "bit", "bit", "bit", "byte", "zeros", "exchanged", "cut", "added"))
    if kind == "bit":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[at] = (content[at] + chance.randint(1, 255)) % 256
    elif kind == "zeros":
        content[at : at + length] = bytes(length)
    elif kind == "exchanged":
        pieces = content[at : at + length], content[other : other + length]
        content[other : other + length], content[at : at + length] = pieces
    elif kind == "cut":
        del content[at : at + length]
    else:
        content[at:at] = chance.randbytes(length)
    return bytes(content)
