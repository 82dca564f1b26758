"""A completion that is printed during generation is the one that is written to a file."""

import pytest
import torch

from pipeline.predict.streaming import CompletionPrinter
from pipeline.tasks.prompts import Prompts
from tests.lsr.serve.test_settling import DECODERS, UNKNOWN, draw_tokens, make_tokenizer


@pytest.mark.parametrize("is_cleaned", [False, True])
@pytest.mark.parametrize("decoder", DECODERS | UNKNOWN)
def test_the_printed_pieces_are_the_text_that_transformers_decodes(decoder, is_cleaned, capsys):
    tokenizer = make_tokenizer((DECODERS | UNKNOWN)[decoder], clean_up_tokenization_spaces=is_cleaned)
    prompts = Prompts(tokenizer, "none")
    for tokens in draw_tokens(200):
        printer = CompletionPrinter(prompts)
        printer.put(torch.tensor([[5, 6, 7]]))
        for token in tokens:
            printer.put(torch.tensor([token]))
        printer.end()
        until_end = tokens[: tokens.index(prompts.end)] if prompts.end in tokens else tokens
        assert capsys.readouterr().out == tokenizer.decode(until_end, skip_special_tokens=True) + "\n"
