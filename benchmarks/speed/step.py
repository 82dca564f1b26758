"""A whole training step: forward, loss, backward and AdamW, with the shapes of two real models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from statistics import median
from typing import NamedTuple

import torch
from peft import LoKrConfig, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from benchmarks.processes import process
from benchmarks.speed.timing import Times, ratio, take_turns
from lsr import LsrConfig
from pipeline.core import console

Targets = Sequence[str] | str

FROZEN, PEER, OURS = "frozen", "LoRA r=8", "LSR r=4 s=16"
CONFIGS: dict[str, Callable[..., PeftConfig]] = {  # with the defaults of their libraries
    OURS: partial(LsrConfig, rank_shape=(2, 2), separation_rank=16),
    "LoRA r=1": partial(LoraConfig, r=1),
    PEER: partial(LoraConfig, r=8),
    "LoKr r=8": partial(LoKrConfig, r=8),
    "VeRA r=256": partial(VeraConfig, r=256),
}
METHODS = (FROZEN, *CONFIGS)
ALL_LINEAR = "all linear"
SHAPES: dict[str, PretrainedConfig] = {  # with two labels; random weights take the same time
    "MiniLM": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "RoBERTa-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514),
}
TARGETS: dict[str, Targets] = {"q, v": ("query", "value"), ALL_LINEAR: r".*\.encoder\..*(query|key|value|dense)"}
BATCHES = {"MiniLM": (32, 32), "RoBERTa-base": (16, 32)}  # examples, tokens each
HEAD = "classifier"
ROUNDS = 4


class Case(NamedTuple):
    """A model, which of its layers are adapted, and the dtype of its weights; libraries choose that of adapters."""

    model: str
    targets: str
    dtype: str


class Row(NamedTuple):
    """A method in a whole step."""

    model: str
    targets: str
    dtype: str
    method: str
    trained: int  # parameters, without the head
    seconds: float  # per step, median
    speed_to_lora: float  # LoRA's time (r = 8) over this one in the same round, median


CASES = (
    *(Case(model, targets, "float32") for model in SHAPES for targets in TARGETS),
    *(Case(model, ALL_LINEAR, "bfloat16") for model in SHAPES),
)


def run(cases: tuple[Case, ...], threads: int, rounds: int = ROUNDS) -> Iterator[Row]:
    """Yield a row for each case and method.

    In the frozen model only the head is trained, and gradients flow down to the embeddings: no adapter can be faster.
    """
    for case in console.track(cases, "step", len(cases), "cases"):
        with process(threads, __name__) as worker:
            seconds, sizes = worker.submit(times, case, rounds).result()
        for method in METHODS:
            yield Row(
                *case,
                method=method,
                trained=sizes[method],
                seconds=median(seconds[method]),
                speed_to_lora=ratio(seconds[PEER], seconds[method]),
            )


def times(case: Case, rounds: int) -> tuple[Times, dict[str, int]]:
    """Return the seconds of steps, and the number of trained parameters without the head, by method."""
    models = {method: _model(case, method) for method in METHODS}
    sizes = {method: _trained_beside_head(model) for method, model in models.items()}
    calls = {method: step(model, drawn(*BATCHES[case.model])) for method, model in models.items()}
    return take_turns(calls, rounds), sizes


def drawn(examples: int, length: int) -> Iterator[Mapping[str, Tensor]]:
    """Return batches with the same tokens, drawn once."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30000, (examples, length), generator=generator)
    return repeat({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2})


def step(
    model: nn.Module, batches: Iterator[Mapping[str, Tensor]], *, rate: float = 1e-3, bf16: bool = False
) -> Callable[[], float]:
    """Return a call that trains a model by one step on the next batch and returns its loss.

    With `bf16` products are in it, by autocast, as the Trainer does it.
    """
    optimizer = torch.optim.AdamW(_trained(model), lr=rate, foreach=True)

    def run_step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**next(batches)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run_step


def _model(case: Case, method: str) -> nn.Module:
    torch.manual_seed(0)
    base: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        SHAPES[case.model], dtype=getattr(torch, case.dtype)
    )
    model: nn.Module = base.requires_grad_(False)
    if method != FROZEN:
        model = get_peft_model(base, CONFIGS[method](target_modules=TARGETS[case.targets]))
    _head(model).requires_grad_()
    if method == FROZEN:
        base.get_input_embeddings().register_forward_hook(lambda *call: call[-1].detach().requires_grad_())
    return model.train()


def _head(model: nn.Module) -> nn.Module:
    return (model.get_base_model() if isinstance(model, PeftModel) else model).get_submodule(HEAD)


def _trained_beside_head(model: nn.Module) -> int:
    return sum(p.numel() for p in _trained(model)) - sum(p.numel() for p in _head(model).parameters())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
