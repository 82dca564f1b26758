"""The tokenizer decides which token pads; the model's configuration is told, and what cannot be padded is refused."""

from contextlib import suppress

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    GPT2Config,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE_MODELS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from lsr.loading.padding import AFFECTED_BY_PADDING, PADDED_ON_THE_LEFT, WRITING_BY_PADDING, prepare_batches
from lsr.loading.prompts import continuations
from tests.kit import refused

WORDS = {word: number for number, word in enumerate(["<end>", "<pad>", "<unk>", "cat", "owl"])}
PAD = WORDS["<pad>"]


def tokenizer(**options):
    backend = Tokenizer(models.WordLevel(dict(WORDS), unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


@pytest.mark.parametrize(
    ("tokens", "id_of_padding"),
    [
        ({"pad_token": "<pad>", "eos_token": "<end>"}, PAD),
        ({"eos_token": "<end>"}, WORDS["<end>"]),
        ({"pad_token": "<unk>", "unk_token": "<unk>", "eos_token": "<end>"}, WORDS["<unk>"]),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizer_decides_whatever_config_json_says(tokens, id_of_padding, side):
    config = GPT2Config(vocab_size=len(WORDS), pad_token_id=4, eos_token_id=[2, 0])
    own = tokenizer(**tokens, padding_side=side, model_input_names=["input_ids"])
    prepare_batches(own, config, "here")
    batch = own.pad([{"input_ids": [3, 4]}, {"input_ids": [4]}], return_tensors="pt")
    assert config.pad_token_id == id_of_padding
    assert batch["input_ids"].tolist() == [[3, 4], [4, id_of_padding]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_model_of_texts_and_images_is_told_where_its_classifier_reads():
    config = Gemma3Config(text_config={"vocab_size": len(WORDS), "pad_token_id": 0})
    prepare_batches(tokenizer(pad_token="<pad>"), config, "here")
    assert config.get_text_config().pad_token_id == PAD


def test_xlnet_is_padded_before_the_text():
    config = AutoConfig.for_model("xlnet", vocab_size=len(WORDS))
    own = tokenizer(pad_token="<pad>")
    prepare_batches(own, config, "here")
    assert own.padding_side == "left"


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        ({}, "gpt2", "here: the tokenizer lacks pad_token and eos_token; set one in tokenizer_config.json"),
        (
            {"pad_token": "[new]"},
            "gpt2",
            "here: the tokenizer pads with token 5, [new]; needed: one of the model's 5 tokens as pad_token in "
            "tokenizer_config.json",
        ),
        (
            {"pad_token": "<pad>"},
            "convbert",
            "here: the output of the architecture convbert for a text depends on the padding after it, so on the other "
            "texts of a batch; choose another model",
        ),
    ],
)
def test_what_cannot_be_padded_is_refused_in_a_line(tokens, kind, message):
    config = AutoConfig.for_model(kind, vocab_size=len(WORDS))
    assert refused(prepare_batches, tokenizer(**tokens), config, "here") == message


TWO = """num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_experts num_local_experts
num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_key_value_heads
eos_token_id"""
WIDTHS = "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim"
INNER = "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff hidden_dim ffn_dim d_inner"
SIZES = {
    **dict.fromkeys(TWO.split(), 2),
    **dict.fromkeys(WIDTHS.split(), 32),
    **dict.fromkeys(INNER.split(), 40),
    **dict.fromkeys(("d_kv", "moe_intermediate_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("pad_token_id", "num_experts_per_tok"), 1),
    "bos_token_id": 0,
    "num_labels": 3,
    "vocab_size": 320,
}
MOST = 10_000_000  # parameters of a model that is small enough to be made here
BY_END = ("bart", "mbart", "mt5", "mvp", "plbart", "t5", "umt5", "bigbird_pegasus")  # which read at the end token


def test_what_writes_by_the_padding_before_a_prompt_is_refused_in_a_line_but_classifies():
    config = AutoConfig.for_model("bart", vocab_size=len(WORDS))
    prepare_batches(tokenizer(pad_token="<pad>"), config, "here")
    assert refused(prepare_batches, tokenizer(pad_token="<pad>"), config, "here", writes=True) == (
        "here: what the architecture bart writes depends on the padding before a prompt, so on the other prompts of a "
        "batch; choose another model"
    )


def small(kind, auto=AutoModelForSequenceClassification, **more):
    """Return a small random model of an architecture; None where these sizes, and `more`, do not make one."""
    try:
        known = AutoConfig.for_model(kind)
        sizes = {name: size for name, size in (SIZES | more).items() if hasattr(known, name)}
        if kind == "xlnet":  # whose number of positions nobody may set
            del sizes["max_position_embeddings"]
        config = AutoConfig.for_model(kind, **sizes)
        with torch.device("meta"):
            outline = auto.from_config(config)
        if sum(parameter.numel() for parameter in outline.parameters()) > MOST:
            return None
        torch.manual_seed(0)
        model = auto.from_config(config).float().eval()
        model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10, 2]]))
    except Exception:  # an architecture that needs other sizes, images or packages
        return None
    for parameter in model.parameters():
        if parameter.requires_grad:  # not a table of positions
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.nightly
def test_every_classifier_of_transformers_answers_the_same_with_padding_or_is_refused():
    affected = set()
    compared = set()
    for kind in sorted(CLASSIFIERS):
        model = small(kind)
        if model is None:
            continue
        compared.add(kind)
        own = tokenizer(pad_token="<pad>", model_input_names=["input_ids"])
        model.config.vocab_size = SIZES["vocab_size"]
        if kind not in AFFECTED_BY_PADDING:
            prepare_batches(own, model.config, "here")
        ids = [*torch.randint(5, 300, (6,)).tolist(), 2 if kind in BY_END else 7]
        longer = [*torch.randint(5, 300, (15,)).tolist(), 2 if kind in BY_END else 7]
        batch = own.pad([{"input_ids": ids}, {"input_ids": longer}], return_attention_mask=True, return_tensors="pt")
        mask = {} if kind == "fnet" else {"attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0]
            beside = model(input_ids=batch["input_ids"], **mask).logits[0]
        if not (alone - beside).abs().max() < 1e-4 * alone.abs().max():
            affected.add(kind)
    assert affected == AFFECTED_BY_PADDING
    assert {"bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "qwen2", *PADDED_ON_THE_LEFT} <= compared
    assert len(compared) > 60


@pytest.mark.nightly
def test_every_language_model_of_transformers_writes_the_same_in_a_batch_with_longer_prompts_or_is_refused():
    affected = set()
    compared = set()
    for kind in sorted(LANGUAGE_MODELS):
        model = small(kind, AutoModelForCausalLM, is_decoder=True, head_dim=16)
        if model is None or not model.can_generate() or model.config.is_encoder_decoder:
            continue
        prompts = [torch.randint(5, 300, (count,)).tolist() for count in (6, 15)]
        in_batch = None
        with suppress(Exception):  # of an architecture that needs more than a prompt, or other sizes
            alone = logits_after(model, prompts[:1])
            in_batch = logits_after(model, prompts)
        if in_batch is None:
            continue
        compared.add(kind)
        if not (alone - in_batch).abs().max() < 1e-4 * alone.abs().max():
            affected.add(kind)
    assert affected == WRITING_BY_PADDING & compared
    assert {"gpt2", "llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "opt", "bloom", "mamba"} <= compared
    assert len(compared) > 100


def logits_after(model, prompts):
    """Return the logits of the first two tokens that a model writes after the first of these prompts."""
    seen = []

    def record(_, scores):
        seen.append(scores[0].nan_to_num(neginf=0.0))  # of tokens that an architecture never writes
        return scores

    own = tokenizer(pad_token="<pad>", model_input_names=["input_ids"])
    model.generation_config.eos_token_id = None  # which could be the first token
    model.config.get_text_config().vocab_size = SIZES["vocab_size"]
    if model.config.model_type not in WRITING_BY_PADDING:
        prepare_batches(own, model.config, "here", writes=True)
    with torch.no_grad():
        continuations(model, own, prompts, 2, (), logits_processor=[record])
    return torch.stack(seen)
