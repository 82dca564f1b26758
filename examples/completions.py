"""`python -m examples.completions`: write data/gym-puzzles.jsonl and data/dialogues.jsonl, the same on every machine.

Both come from packages of the index, fetched by their hashes. What these packages require is not needed.
"""

import hashlib
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

from ruamel.yaml import YAML

from pipeline.core import artifacts, console
from pipeline.core.console import Parser
from pipeline.core.errors import UserError
from pipeline.data import packages

PUZZLES = "reasoning-gym==0.1.25", "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
DIALOGUES = "chatterbot-corpus==1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
KINDS: dict[str, tuple[str, dict[str, int]]] = {  # by name: the module, and what makes its puzzles small
    "chain_sum": ("arithmetic.chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "leg_counting": ("arithmetic.leg_counting", {"min_animals": 1, "max_animals": 2, "max_instances": 5}),
    "spell_backward": ("algorithmic.spell_backward", {"min_word_len": 3, "max_word_len": 4}),
}
OF_A_KIND, SEED = 500, 0
TURNS, WORDS = 6, 24  # of a dialogue, and of its last turn, at most
NEWLINE = b"\n"


def puzzles() -> list[dict[str, Any]]:
    """Return puzzles of all kinds in turn."""
    wheel = packages.fetch(*PUZZLES, ".whl")
    sys.path.insert(0, str(wheel))
    # What stands for a package imports none of its modules, most of which need other packages.
    for name in ("reasoning_gym", *(f"reasoning_gym.{module.partition('.')[0]}" for module, _ in KINDS.values())):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
    import_module("reasoning_gym.coaching")
    create: Any = import_module("reasoning_gym.factory").create_dataset
    made = []
    for kind, (module, options) in KINDS.items():
        import_module(f"reasoning_gym.{module}")
        made.append(list(create(kind, seed=SEED, size=OF_A_KIND, **options)))
    return [
        {"prompt": one["question"].strip(), "completion": one["answer"], "kind": kind}
        for several in zip(*made, strict=True)
        for kind, one in zip(KINDS, several, strict=True)
    ]


def dialogues() -> list[dict[str, Any]]:
    """Return conversations of two in turn, each up to the last turn of the second, which is a short line, once."""
    found: dict[str, None] = {}  # in order
    with ZipFile(packages.fetch(*DIALOGUES, ".whl")) as wheel:
        for name in sorted(name for name in wheel.namelist() if Path(name).match("data/english/*.yml")):
            for said in YAML(typ="safe", pure=True).load(wheel.read(name))["conversations"]:
                turns = [str(one).strip() for one in said[: len(said) // 2 * 2]]
                is_plain = turns and all(turns) and "\n" not in turns[-1]
                if is_plain and len(turns) <= TURNS and len(turns[-1].split()) <= WORDS:
                    roles = ["user", "assistant"] * (len(turns) // 2)
                    talk = [{"role": role, "content": one} for role, one in zip(roles, turns, strict=True)]
                    found[json.dumps(talk, ensure_ascii=False)] = None
    return [{"messages": json.loads(talk)} for talk in found]


def main() -> None:
    """Write the files.

    Raises:
        UserError: if one would be another than that of the rows.
    """
    for path, (make, sha256) in FILES.items():
        content = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in make()).encode()
        if (actual := hashlib.sha256(content).hexdigest()) != sha256:
            raise UserError(f"{path}: would have the SHA-256 {actual}, not {sha256}; it is left as it is")
        with artifacts.replace_atomically(Path(path)) as temporary:
            temporary.write_bytes(content)
        console.line(f"written: {path}, {content.count(NEWLINE)} lines")


FILES = {  # what makes each, and its SHA-256
    "data/gym-puzzles.jsonl": (puzzles, "2fb7663d5b138108ff2fe10c6ba451ea19e27a68e573eaa5412f0e3487334046"),
    "data/dialogues.jsonl": (dialogues, "f767c9c2080636041300913ef18633c25f3dd4311c952d5aaded9dffb4e7f90a"),
}

if __name__ == "__main__":
    about = (
        "Write the data sets data/gym-puzzles.jsonl and data/dialogues.jsonl, from packages of the package index, "
        "fetched by SHA-256. The files are the same on every machine."
    )
    with Parser("python -m examples.completions", about).parse():
        main()
