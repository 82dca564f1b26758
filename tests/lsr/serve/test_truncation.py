"""A server truncates as `truncation=True` of plain transformers does, and leaves the tokenizer as it is."""

import threading

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from lsr import AdapterBank
from lsr.serve.modules import Version
from lsr.serve.passes import BatchRunner
from lsr.serve.truncation import truncate
from tests.architectures import SPECIAL, trained_bpe
from tests.kit import refused
from tests.lsr.serve.asking import ask_passes, posted, predict
from tests.workspace import sentences

TEMPLATES = {
    "bert": ("<s> $A <unk>", "<s> $A <unk> $B:1 <unk>:1"),
    "roberta": ("<s> $A <unk>", "<s> $A <unk> <unk> $B <unk>"),
    "t5": ("$A <unk>", "$A <unk> $B <unk>"),
    "xlnet": ("$A <unk> <s>:2", "$A <unk> $B:1 <unk>:1 <s>:2"),
    "no special tokens": None,
}
LONG = " ".join(first for first, *_ in sentences(40))  # some 2,000 characters
BPE = trained_bpe(SPECIAL).to_str()
TEXTS = ["the cat", "the owl number 7 sleeps in the barn <s> today", LONG[:250]]


def make_tokenizer(name, side="right"):
    """A tokenizer with the special tokens of a model, which gives types and a mask."""
    if name == "python":
        return ByT5Tokenizer(truncation_side=side)
    bpe = Tokenizer.from_str(BPE)
    if TEMPLATES[name] is not None:
        single, pair = TEMPLATES[name]
        tokens = [(token, bpe.token_to_id(token)) for token in SPECIAL]
        bpe.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_input_names=inputs, truncation_side=side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [*TEMPLATES, "python"])
def test_texts_and_pairs_of_any_lengths_are_truncated_as_transformers_does(name, side):
    tokenizer = make_tokenizer(name, side)
    plain = make_tokenizer(name, side)
    columns = [TEXTS], [TEXTS * 3, [text for text in TEXTS for _ in TEXTS]]  # texts, and each pair of them
    for given in columns:
        whole = tokenizer(*given)
        for number, parts in enumerate(zip(*given, strict=True)):
            for length in (6, 7, 12, 13, 39):
                if len(whole["input_ids"][number]) > length:
                    expected = plain(*parts, truncation=True, max_length=length)
                    assert truncate(tokenizer, whole, number, parts, length) == dict(expected)
    assert len(tokenizer(LONG)["input_ids"]) > 100  # later calls truncate nothing


def test_without_room_for_special_tokens_there_is_an_error():
    tokenizer = make_tokenizer("roberta")
    whole = tokenizer([LONG], [LONG])
    says = "the tokenizer adds 4 tokens; this adapter reads at most 3"
    with pytest.raises(ValueError, match=says):
        truncate(tokenizer, whole, 0, [LONG, LONG], 3)


@pytest.fixture
def passes(there):
    """A bank with adapters that read 28 tokens, of texts and of pairs."""
    bank = AdapterBank.load(None, there / "bank")
    pairs = {"columns": ["text", "text_pair"], "labels": list("abcd"), "max_length": 28}
    bank.add("pia", there / "0/cleo", task_info=pairs)
    return BatchRunner(bank, AutoTokenizer.from_pretrained(there / "base"), 30, 1)


def test_long_texts_and_pairs_are_answered_as_plain_transformers_does_and_counted(passes, there):
    plain = AutoTokenizer.from_pretrained(there / "base")
    pairs = [["the cat", LONG], [LONG, "the cat"], [LONG, LONG], ["the cat", "a dog"]]
    asked = {"cleo": ["the cat", LONG, LONG[:200]], "pia": pairs}
    requests = [predict(name, *texts) for name, texts in asked.items()]
    classify = "/classify", {"model": "cleo", "input": asked["cleo"]}
    *found, classified = ask_passes(passes, posted(*requests, classify))
    base = AutoModelForSequenceClassification.from_pretrained(there / "base", num_labels=4)
    model = PeftModel.from_pretrained(base, there / "0/cleo").eval()
    for texts, response, truncated in zip(asked.values(), found, (2, 3), strict=True):
        assert response.json()["truncated"] == truncated
        for text, answer in zip(texts, response.json()["answers"], strict=True):
            parts = [text] if isinstance(text, str) else text
            encoded = plain(*parts, truncation=True, max_length=28, return_tensors="pt")
            with torch.no_grad():
                expected = model(**encoded).logits[0].softmax(dim=0).tolist()
            assert [*answer["probabilities"].values()] == pytest.approx(expected, abs=1e-5)
    assert classified.json()["truncated"] == 2
    chances = [[*answer["probabilities"].values()] for answer in found[0].json()["answers"]]
    assert [item["probs"] for item in classified.json()["data"]] == [pytest.approx(own, abs=1e-5) for own in chances]


def test_strict_refuses_them_in_a_line(passes, there):
    strict = BatchRunner(passes.bank, passes.tokenizer, 30, 1, is_strict=True)
    count = len(passes.tokenizer(LONG[:200])["input_ids"])
    assert 28 < count < 560
    short, long, longer = ask_passes(
        strict, posted(predict("cleo", "the cat"), predict("cleo", "the cat", LONG[:200]), predict("cleo", LONG))
    )
    assert (short.status_code, short.json()["truncated"]) == (200, 0)
    assert (long.status_code, long.json()) == (
        422,
        {"error": f"texts[1]: {count} tokens; this adapter reads at most 28"},
    )
    assert longer.json() == {"error": "texts[0]: over 560 characters; at most that are read"}


def test_threads_with_different_lengths_do_not_truncate_for_each_other(passes):
    lengths = [6, 12, 24, 28]
    expected = {
        length: len(passes.tokenizer(LONG, truncation=True, max_length=length)["input_ids"]) for length in lengths
    }
    passes.tokenizer("the cat")  # without truncation again
    wrong = []

    def read(length):
        version = Version({"max_length": length}, {}, 2)
        for _ in range(50):
            (row,) = passes.rows("cleo", version, [LONG])
            if len(row.inputs["input_ids"]) != expected[length]:
                wrong.append(length)

    threads = [threading.Thread(target=read, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_texts_with_too_many_characters_together_are_refused_before_they_are_tokenized(passes, monkeypatch):
    most = 20 * passes.tokens * 64
    version = Version({"max_length": 12}, {}, 2)
    half = "the cat " * (most // 16)
    assert len(passes.rows("cleo", version, [half, half])) == 2
    monkeypatch.setattr(passes, "tokenizer", None)
    says = f"texts: over {most:,} characters together; at most that are read"
    refused(passes.rows, "cleo", version, [half, half, "a"], says=says)
    refused(passes.rows, "cleo", version, ["a" * (most + 1)], says=says)
