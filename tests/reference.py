"""Independent references: plain transformers, PEFT, scikit-learn, scipy, and dense matrices in float64.

Nothing here comes from lsr, pipeline or stages. Each text passes through a model alone, in float32, without padding.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from scipy import special, stats
from sklearn import metrics
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "base_model.model."  # PEFT's, before the names of tensors of the base model
MARK = ".lsr_adapters."
DIAGONAL = 8  # the divisor of alpha with diagonal cores, as docs/explanation/family.md has it
CONFIDENCE = 0.95
PROBLEMS = {"multi_label": "multi_label_classification", "number": "regression"}


def load_alone(base: Path, adapter: Path | None = None, outputs: int | None = None, **options: Any) -> Any:
    """Return a checkpoint in float32 with an adapter, as a classifier with so many outputs or as a language model.

    An adapter of LSR is merged by dense matrices, any other is loaded by PEFT. Without a padding token, a decoder
    classifies the last token of a text that passes alone.
    """
    auto = "AutoModelForCausalLM" if outputs is None else "AutoModelForSequenceClassification"
    if outputs is not None:
        options["num_labels"] = outputs
    model = getattr(transformers, auto).from_pretrained(base, dtype=torch.float32, **options).eval()
    if not model.config.is_encoder_decoder:  # whose decoder begins with this token
        model.config.get_text_config().pad_token_id = None
    if adapter is None:
        return model
    if fields_of(adapter)["peft_type"] != "LSR":
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    for layer, update in dense_updates(adapter, model).items():
        weight = model.get_submodule(layer).weight
        weight.data = (weight.data.double() + as_stored(model, layer, update)).float()
    load_head(model, adapter)
    return model


@torch.no_grad()
def logits_alone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    max_length: int,
) -> Tensor:  # (texts, outputs), float64
    """Return the logits of each text or pair, one after the other."""
    return torch.cat([model(**encoded(tokenizer, text, max_length)).logits for text in texts]).double()


def encoded(tokenizer: PreTrainedTokenizerBase, text: tuple[str, ...], max_length: int) -> Mapping[str, Tensor]:
    """Return what the tokenizer makes of a text or a pair, truncated to `max_length` tokens."""
    return tokenizer(*text, truncation=True, max_length=max_length, return_tensors="pt")


def generate_alone(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, **options: Any
) -> list[str]:
    """Return the text that plain `generate` writes greedily for each prompt of a user, one after the other."""
    written = []
    for prompt in prompts:
        ids = prompt_ids(tokenizer, prompt)
        mask = torch.ones_like(ids)
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, **options)
        written.append(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
    return written


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    """Return the token ids (1, length) of a prompt of the user by the tokenizer's chat template, if it has one."""
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt").input_ids
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)


def completion_loss(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[float, int]:
    """Return the sum of the losses of an answer's tokens and of its end token, and how many these are."""
    asked = prompt_ids(tokenizer, prompt)[0].tolist()
    answered = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logs = model(torch.tensor([asked + answered])).logits[0].double().log_softmax(dim=-1)
    of_answer = logs[len(asked) - 1 : -1]
    return -float(of_answer[torch.arange(len(answered)), answered].sum()), len(answered)


# Adapters of LSR from their files alone.


def fields_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of an adapter."""
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file by their names in the base model."""
    stored = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}


def load_head(model: nn.Module, folder: Path) -> None:
    """Load the modules that were trained whole into the base model."""
    head = {name: tensor for name, tensor in tensors_of(folder).items() if MARK not in name and "lora_" not in name}
    assert model.load_state_dict(head, strict=False).unexpected_keys == []


def factors_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the factors and the core of each layer by name; shared ones are in all layers that share them."""
    return by_layer(tensors_of(folder))


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the factors and the core of each layer from tensors by their names in a file.

    Layers share with those whose names differ from theirs in the index alone; the file holds what is shared in the
    first of them.
    """
    own: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, mark, factor = name.partition(MARK)
        if mark:
            own.setdefault(layer, {})[factor] = tensor
    by_index = sorted(own, key=lambda layer: [int(number) for number in re.findall(r"\d+", layer)])
    first: dict[str, dict[str, Tensor]] = {}
    return {layer: first.setdefault(re.sub(r"\d+", "*", layer), own[layer]) | own[layer] for layer in by_index}


def dense_updates(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return the update alpha / r * B R A of each layer, (m, n) in float64."""
    fields = fields_of(folder)
    updates = {}
    for layer, factors in factors_of(folder).items():
        precise = {name: value.double() for name, value in factors.items()}
        a, b, core = sides(precise, *weight_of(model, layer).shape)
        alpha = alpha_of(layer, fields)
        updates[layer] = scaling_of(fields | {"alpha": alpha}, len(core)) * b @ core @ a
    return updates


def alpha_of(layer: str, fields: Mapping[str, Any]) -> float:
    """Return the alpha of a layer; a pattern matches the end of a layer's name, or with ^ the whole name."""
    for pattern, alpha in fields["alpha_pattern"].items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return alpha
    return fields["alpha"]


def scaling_of(fields: Mapping[str, Any], rank: int) -> float:
    """Return the factor of an update of a rank, from the configuration of its adapter."""
    divisor = DIAGONAL if fields["core"] == "diagonal" else rank
    return fields["alpha"] / divisor


def sides(factors: Mapping[str, Tensor], m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (r, n), B (m, r) and the core (r, r), each formed densely."""
    a, b = (kronecker_sum(factors, side) for side in ("factor_A", "factor_B"))
    core = factors.get("core", torch.eye(len(a), dtype=a.dtype))
    return a[:, :n], b[:m], core.diag() if core.dim() == 1 else core


def kronecker_sum(factors: Mapping[str, Tensor], side: str) -> Tensor:
    """Return the sum over the terms of first ⊗ second, or the one dense factor."""
    first = factors[f"{side}1"]
    second = factors.get(f"{side}2")
    if second is None:
        return first[0]
    return torch.stack([torch.kron(*pair) for pair in zip(first, second, strict=True)]).sum(dim=0)


def weight_of(model: nn.Module, layer: str) -> Tensor:
    """Return the weight (m, n) of y = W x, whatever the layer's layout."""
    return as_stored(model, layer, model.get_submodule(layer).weight)


def as_stored(model: nn.Module, layer: str, matrix: Tensor) -> Tensor:
    """Return a matrix (m, n) as the layer stores it, or the other way round: GPT-2's Conv1D stores W transposed."""
    return matrix if isinstance(model.get_submodule(layer), nn.Linear) else matrix.T


# Scores.


def macro_f1(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 over the classes or labels that occur: scikit-learn counts labels that nothing has."""
    labels = np.flatnonzero((actual + predicted).any(axis=0)) if actual.ndim > 1 else None
    return metrics.f1_score(actual, predicted, average="macro", zero_division=0, labels=labels)


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": lambda actual, predicted: metrics.f1_score(actual, predicted, zero_division=0),
    "macro_f1": macro_f1,
    "micro_f1": lambda actual, predicted: metrics.f1_score(actual, predicted, average="micro", zero_division=0),
    "matthews_correlation": metrics.matthews_corrcoef,
    "pearson": lambda actual, predicted: stats.pearsonr(actual, predicted).statistic,
    "spearman": lambda actual, predicted: stats.spearmanr(actual, predicted).statistic,
}


def probabilities_of(logits: np.ndarray, kind: str | None) -> np.ndarray:
    """Return the probabilities of classes, or of labels any number of which are right."""
    return special.expit(logits) if kind == "multi_label" else special.softmax(logits, axis=1)


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Return the ends of the interval of Clopper and Pearson for a fraction."""
    bounds = stats.binomtest(int(count), int(total)).proportion_ci(CONFIDENCE, method="exact")
    return bounds.low, bounds.high


def bootstrap_interval(
    score: Callable[[np.ndarray, np.ndarray], float], actual: np.ndarray, predicted: np.ndarray, resamples: int
) -> tuple[float, float]:
    """Return the percentiles of scores of resamples, drawn of the examples in sorted order."""
    keys = (*np.atleast_2d(predicted.T), *np.atleast_2d(actual.T))
    order = np.lexsort(keys)

    def scored(drawn: np.ndarray) -> float:
        return score(actual[order[drawn]], predicted[order[drawn]])

    bounds = stats.bootstrap(
        (np.arange(len(order)),),
        scored,
        n_resamples=resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return bounds.low, bounds.high


def rouge_l(text: str, expected: str) -> float:
    """Return the F-measure of the longest common subsequence of words, by its table."""
    first, second = (re.findall(r"\w+", words.casefold()) for words in (text, expected))
    longest = np.zeros((len(first) + 1, len(second) + 1), int)
    for row, word in enumerate(first, start=1):
        for column, other in enumerate(second, start=1):
            if word == other:
                longest[row, column] = longest[row - 1, column - 1] + 1
            else:
                longest[row, column] = max(longest[row - 1, column], longest[row, column - 1])
    total = len(first) + len(second)
    return 2 * longest[-1, -1] / total if total else 0.0
