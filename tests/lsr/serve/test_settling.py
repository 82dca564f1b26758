"""The pieces of a text that is written are the beginnings of the whole text, whatever the tokenizer."""

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lsr import AdapterBank
from lsr.serve.completions import Writing
from lsr.serve.passes import BatchRunner
from lsr.serve.settling import Decoder
from lsr_onnx.rows import Wanted
from tests.architectures import VOCABULARY
from tests.lsr.serve.asking import ask_passes
from tests.lsr.serve.tenants import save_writers

PIECES = ["a", "ca", "do", "it", "'", "n", "n'", "n't", "t", "s", "ve", "'s", "'re", ".", ",", "?", "!", "##ing", "##'"]
PIECES += ["##'t", "▁", "▁the", "▁'", "▁n", "▁.", "|", "b</w>", "'</w>", "Ġ", "Ġa", "Ġ'", "â", "Ĥ", "¬"]
PIECES += ["<0xE2>", "<0x82>", "<0xAC>", "<0x41>", "<0xC3>", "<0xA9>"]
SPECIAL = ["<s>", "<pad>", "<unk>"]
LENGTH = 12
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
DECODERS = {
    "none": None,
    "bytes": decoders.ByteLevel(),
    "word pieces": decoders.WordPiece(),
    "word pieces as they are": decoders.WordPiece(cleanup=False),
    "metaspace": decoders.Metaspace(),
    "ends of words": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "llama": decoders.Sequence(LLAMA),
}
UNKNOWN = {
    "two characters": decoders.Replace("s▁", "z"),
    "joined first": decoders.Sequence([decoders.Fuse(), decoders.WordPiece()]),
    "joined ends": decoders.Sequence([decoders.Fuse(), decoders.BPEDecoder()]),
}


def make_tokenizer(decoder, pieces=PIECES, **options):
    names = [*SPECIAL, *pieces]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        backend.decoder = decoder
    special = {"eos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=60, **special, **options)


def write(tokenizer, tokens, stop_texts=()):
    """Return the completion of these tokens, and the text that is heard after each of them."""
    heard = []
    writing = Writing(Wanted(len(tokens), (), stop_texts, listen=heard.append), Decoder(tokenizer), lambda: False)
    for token in tokens:
        writing.add(token)
    return writing.completion().text, heard


def draw_tokens(count=400):
    generator = random.Random(1)
    return [generator.choices(range(len(SPECIAL) + len(PIECES)), k=LENGTH) for _ in range(count)]


@pytest.mark.parametrize("is_cleaned", [False, True])
@pytest.mark.parametrize("decoder", DECODERS | UNKNOWN)
def test_what_is_heard_is_the_beginning_of_what_transformers_decodes(decoder, is_cleaned):
    step = (DECODERS | UNKNOWN)[decoder]
    tokenizer = make_tokenizer(step, clean_up_tokenization_spaces=is_cleaned)
    early = 0
    for tokens in draw_tokens():
        text, heard = write(tokenizer, tokens)
        assert text == heard[-1] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert all(text.startswith(piece) for piece in heard)
        early += len(heard[-2])
    assert (early > 0) == (decoder in DECODERS)


def test_a_stop_text_is_not_heard_though_its_last_character_is_of_several_tokens():
    tokenizer = make_tokenizer(decoders.ByteLevel())
    tokens = tokenizer.convert_tokens_to_ids(["it", "a", "â", "Ĥ", "¬", "do"])
    text, heard = write(tokenizer, tokens, ["a€"])
    assert text == "it"
    assert set(heard) == {"it"}


def read_stream(events):
    """Return the text of the pieces of a stream."""
    *contents, end = [event.removeprefix("data: ") for event in events.strip().split("\n\n")]
    assert end == "[DONE]"
    return "".join(json.loads(content)["choices"][0]["text"] for content in contents)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save_writers(folder, "a").save(folder / "bank")
    return folder


@pytest.mark.parametrize(("decoder", "most"), [("llama", 1 << 16), ("two characters", 3)])
def test_a_stream_has_the_text_of_the_whole_answer(decoder, most, folder, monkeypatch):
    """Where text is held until it is complete, it is more at once than a client may leave unread."""
    monkeypatch.setattr("lsr_server.streaming.MAX_UNSENT", most)
    pieces = [f"<0x{number:02X}>" for number in range(256)]
    pieces += [f"▁{number}" for number in range(VOCABULARY - len(SPECIAL) - len(pieces))]
    tokenizer = make_tokenizer((DECODERS | UNKNOWN)[decoder], pieces)
    passes = BatchRunner(AdapterBank.load(None, folder / "bank"), tokenizer, 60, LENGTH)

    async def call(client):
        answers = []
        for seed in range(12):
            asked = {"model": "a", "prompt": "the cat", "max_tokens": LENGTH, "temperature": 2, "seed": seed}
            for is_streamed in (False, True):
                answers.append(await client.post("/v1/completions", json=asked | {"stream": is_streamed}))
        return answers

    answers = ask_passes(passes, call)
    assert {answer.status_code for answer in answers} == {200}
    whole = [answer.json()["choices"][0]["text"] for answer in answers[::2]]
    streamed = [read_stream(answer.text) for answer in answers[1::2]]
    assert streamed == whole
    assert len(set(whole)) > 6
