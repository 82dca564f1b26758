"""Adapters of each method of PEFT with random weights on tiny models, saved by PEFT, and loads that have to end."""

import signal
from contextlib import contextmanager

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig, get_peft_model
from peft.utils import PeftType

from tests.old_tiny.models import tiny, tokens

SECONDS = 5  # of a load that takes a tenth of one: the machine may be busy
CLASSIFIER = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
WRITER = {"task_type": "CAUSAL_LM"}
SIZES = {  # of a method that has no usual ones, or whose usual ones are too large for the tiny models
    "ADALORA": {"total_step": 10, "target_r": 4, "init_r": 6},
    "ADAMSS": {"num_subspaces": 2},
    "ADAPTION_PROMPT": {**WRITER, "adapter_len": 3, "adapter_layers": 1},
    "C3A": {"block_size": 4},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 2]},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
    "KADAPTATION": {"n": 2, "r": 1},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "LSR": {"rank_shape": [2], "train": "core"},
    "OFT": {"oft_block_size": 4, "r": 0},
    "OSF": {"effective_rank": 4},
    "POLY": {"n_tasks": 2, "n_skills": 2},
    "PREFIX_TUNING": {"encoder_hidden_size": 8},
    "P_TUNING": {"encoder_hidden_size": 8},
    "ROAD": {"group_size": 8},
    "TRAINABLE_TOKENS": {"token_indices": [5, 12], "target_modules": ["word_embeddings"]},
    "UNILORA": {"theta_d_length": 50},
    "VBLORA": {"num_vectors": 8, "vector_length": 3},
    "WAVEFT": {"n_frequency": 24},
}
OF_TASKS = ("POLY", "MULTITASK_PROMPT_TUNING")  # which are called with the number of one
UNREAD = {  # and why
    "SHADOW": "loads another model",
    "SHIRA": "its file has indices in int32",
    "SUPERTUNING": "its file has indices in int32",
    "XLORA": "loads other adapters",
    "KADAPTATION": "registered by the pipeline, see tests/pipeline/methods",
}
METHODS = sorted({str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - UNREAD.keys())


class TooLongError(BaseException):
    """No Exception: PEFT's are turned into lines."""


@contextmanager
def in_time(seconds=SECONDS):
    """Interrupt what takes too long, such as a pipe that nobody writes to."""

    def interrupt(*_):
        raise TooLongError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def model_of(method):
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)]
    return tiny("llama-causal" if issubclass(kind, PromptLearningConfig) or method == "ADAPTION_PROMPT" else "bert")


def save(folder, method, **fields):
    """Save an adapter of a method with random weights."""
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)]
    if issubclass(kind, PromptLearningConfig):
        usual = WRITER if method == "CPT" else {**WRITER, "num_virtual_tokens": 4}
    else:
        usual = CLASSIFIER | ({"r": 4} if "r" in kind.__dataclass_fields__ else {})
    torch.manual_seed(0)
    own = SIZES.get(method, {})
    model = get_peft_model(model_of(method), kind(**(own if "adapter_len" in own else usual | own) | fields))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def logits(model, method):
    inputs = tokens()
    inputs |= {"task_ids": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)} if method in OF_TASKS else {}
    return model.eval()(**inputs).logits
