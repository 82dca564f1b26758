"""A tokenizer in an adapter's folder, with which it is asked, is in what the commands write, for transformers too."""

import re
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lsr import export_lora
from lsr.__main__ import main
from lsr.loading.adapters import load_adapter
from tests.kit import digests, said
from tests.lsr.saved import save_lora

TEXTS = ["one two", "two two three one", "four"]
WORDS = {"[PAD]": 7, "[UNK]": 3, "one": 11, "two": 12, "three": 13, "four": 14}


def save_tokenizer(folder, **more):
    """Save a tokenizer that is not the base model's; return the names of its files, as transformers lists them."""
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", **more)
    return {Path(name).name for name in tokenizer.save_pretrained(folder) if Path(name).is_file()}


COMMANDS = {
    "export": ["export", "adapter", "--to", "lora", "-o", "out"],
    "quantize": ["quantize", "adapter", "--to", "4bit", "-o", "out"],
    "compress": ["compress", "adapter", "--to", "rank:1", "-o", "out"],
    "import": ["import", "lora", "-o", "out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_beside_an_adapter_is_beside_what_is_written(beside, command):
    words = COMMANDS[command]
    save_lora(beside / "lora", base="./base")
    said(main, *words)
    without = set(digests("out"))
    for source in ("adapter", "lora"):
        names = save_tokenizer(source, chat_template="{{ messages }}")
    said(main, *words, "--force")
    before = digests(words[1])
    after = digests("out")
    assert {name: after[f"out/{name}"] for name in names} == {name: before[f"{words[1]}/{name}"] for name in names}
    assert set(after) == without | {f"out/{name}" for name in names}
    actual, expected = (AutoTokenizer.from_pretrained(folder) for folder in ("out", words[1]))
    assert actual(TEXTS, padding=True).data == expected(TEXTS, padding=True).data
    assert (actual.pad_token_id, actual.chat_template) == (WORDS["[PAD]"], "{{ messages }}")
    said(main, *words, "--force")  # it replaces what it has written itself
    assert digests("out") == after


def test_a_part_of_a_tokenizer_is_none(beside):
    Path("adapter/tokenizer_config.json").write_text("{}", encoding="utf-8")
    said(main, *COMMANDS["export"])
    assert "out/tokenizer_config.json" not in digests("out")


def test_the_card_of_an_exported_lora_asks_with_the_tokenizer_beside_it(beside):
    save_tokenizer("adapter")
    model = load_adapter(Path("adapter"))
    export_lora(model, "out")
    code = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    Path("out/base").symlink_to(Path("base").resolve())
    with chdir("out"):
        names = {}
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102 what the card says is asked for
        answers = names["ask"](TEXTS, top_k=None)
    with torch.no_grad():
        for text, answer in zip(TEXTS, answers, strict=True):
            ids = torch.tensor([[WORDS[word] for word in text.split()]])
            shares = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(dim=1)[0].tolist()
            assert sorted(one["score"] for one in answer) == pytest.approx(sorted(shares), abs=1e-5)


def test_the_tokenizer_of_an_adapter_on_the_hub_is_fetched_with_it(monkeypatch, tmp_path):
    from lsr.tuner import files

    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(files, "snapshot_download", fetch)
    assert files.adapter_folder("owner/adapter") == tmp_path
    [(name, patterns)] = asked
    there = save_tokenizer(tmp_path, chat_template="{{ messages }}")
    assert name == "owner/adapter"
    assert all(any(Path(file).match(pattern) for pattern in patterns) for file in there)
    assert not any(Path("model.safetensors").match(pattern) for pattern in patterns)
