"""Filter the fields of an untrusted adapter's configuration before PEFT sees them, by method and within bounds.

Most fields only matter when training begins. Some name files that PEFT would open, or cause endless work, to
initialize weights that the adapter's file then replaces. So the allowed fields are listed here. Fields that only
initialize are dropped, and every other field must have PEFT's default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from itertools import chain
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from peft.utils import PeftType

from lsr.errors import shortened
from lsr.tuner.options import Fields

MAX_STEPS = 64  # limit to a loop whose length is a field, such as the layers of an encoder
MAX_VALUES = 100_000  # limit to the values in the lists and objects of a field
MAX_LAYERS = 1_000  # limit to the layers that `layer_replication` makes

# Fields that say which base model and layers an adapter is for, and which patterns and biases it has.
PLACING = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "fan_in_fan_out",
)
SHARED = (  # fields of each method that has them
    *PLACING,
    "r",
    "alpha",
    "init_weights",
    "lora_alpha",
    "lora_dropout",
    "module_dropout",
    "rank_dropout",
)
_LORA = """
    use_rslora init_lora_weights loftq_config trainable_token_indices use_dora velora_config alora_invocation_tokens
    use_qalora qalora_group_size layer_replication lora_bias target_parameters use_bdlora kasa_config
    ensure_weight_tying
"""
_PROMPT = "num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers"
# The fields of each method in addition to the shared ones. XLORA and SHADOW load other models that the file names; the
# files of SHIRA and SUPERTUNING hold indices in int32, which `read_weights` refuses.
_READ = {
    "ADALORA": f"{_LORA} target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step",
    "ADAMSS": """
        num_subspaces subspace_rank use_asa asa_target_subspaces init_warmup final_warmup mask_interval
        asa_importance_beta asa_uncertainty_beta asa_schedule_exponent use_dynamic_rank svd_threshold random_seed
    """,
    "ADAPTION_PROMPT": "adapter_len adapter_layers",
    "BEFT": "",
    "BOFT": "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout",
    "C3A": "block_size block_size_pattern",
    "CARTRIDGE": f"{_PROMPT} num_frozen_tokens",
    "CPT": f"""
        {_PROMPT} cpt_token_ids cpt_mask cpt_tokens_type_mask opt_weighted_loss_type opt_loss_decay_factor
        opt_projection_epsilon opt_projection_format_epsilon
    """,
    "DEFT": "decomposition_method init_scale para deft_dropout",
    "DELORA": "delora_lambda lambda_pattern",
    "FOURIERFT": "n_frequency scaling random_loc_seed n_frequency_pattern",
    "FROD": "projection_prng_key save_projection frod_dropout sparse_rate regularization_alpha",
    "GLORA": "config_A_B config_C config_D_E",
    "GRALORA": "hybrid_r gralora_dropout gralora_k",
    "HIRA": "hira_dropout",
    "HRA": "apply_GS",
    "IA3": "feedforward_modules init_ia3_weights",
    "LILY": "stride_A num_B scaling",
    "LN_TUNING": "",
    "LOHA": "use_effective_conv2d",
    "LOKR": "use_effective_conv2d decompose_both decompose_factor rank_dropout_scale",
    "LORA": _LORA,
    "MISS": "miss_dropout mini_r",
    "MULTITASK_PROMPT_TUNING": f"{_PROMPT} num_ranks num_tasks",
    "OFT": "oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms",
    "OSF": "effective_rank target_svd_config",
    "PEANUT": "depth act_fn scaling",
    "POLY": "poly_type n_tasks n_skills n_splits",
    "PREFIX_TUNING": f"{_PROMPT} encoder_hidden_size prefix_projection",
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": """
        psoft_alpha psoft_dropout ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed psoft_orth psoft_mag_b
        psoft_mag_a use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps
    """,
    "PVERA": "projection_prng_key save_projection pvera_dropout d_initial sample_at_inference generator_seed",
    "P_TUNING": f"{_PROMPT} encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout",
    "RANDLORA": "projection_prng_key save_projection sparse very_sparse randlora_dropout randlora_alpha",
    "ROAD": "variant group_size",
    "TINYLORA": "u weight_tying projection_seed save_projection init_v_bound tinylora_dropout",
    "TRAINABLE_TOKENS": "token_indices",
    "UNILORA": "proj_seed theta_d_length unilora_dropout init_theta_d_bound save_indices",
    "VBLORA": """
        num_vectors vector_length topk save_only_topk_weights vblora_dropout init_vector_bank_bound init_logits_std
    """,
    "VERA": "projection_prng_key save_projection vera_dropout d_initial",
    "WAVEFT": """
        n_frequency scaling wavelet_family use_idwt random_loc_seed n_frequency_pattern proportional_parameters
    """,
}
_ALLOWED = {method: frozenset((*SHARED, *names.split())) for method, names in _READ.items()}
# What only initializes weights that the file holds, or is about the machine of whoever has trained.
DROPPED = (
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "runtime_config",
    "runtime_offload_base_weight",
    "progressbar",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "prompt_tuning_init_task",
    "prompt_tuning_init_state_dict_path",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
)
# Fields that are the length of a loop in Python.
STEPS = (
    "adapter_layers",
    "boft_n_butterfly_factor",
    "depth",
    "encoder_num_layers",
    "gralora_k",
    "n_skills",
    "n_splits",
    "num_subspaces",
    "num_cayley_neumann_terms",
    "psoft_svd_lowrank_niter",
)
START = "init_lora_weights"  # LoRA's field: some initializations change the base weights, and so have to run
STARTS = ("gaussian", "orthogonal", "olora", "mica", "pissa", "loftq")
# Initializations that need data: PEFT initializes as usual instead, and the file's tensors replace that.
UNUSED_STARTS = ("eva", "lora_ga")
ITERATIONS = re.compile(r"pissa_niter_(\d{1,9})")
LOFTQ = {"loftq_bits": (2, 4, 8), "loftq_iter": range(1, MAX_STEPS + 1)}


def allow(method: str, *fields: str) -> None:
    """Allow fields for adapters of your own PEFT method, in addition to the fields that all methods share."""
    _ALLOWED[method] = frozenset((*SHARED, *fields))


def methods() -> frozenset[str]:
    """Return the names of the PEFT methods, besides LSR, whose adapters can be loaded."""
    return frozenset(_ALLOWED)


def config_of(fields: Fields, widest: int) -> PeftConfig:
    """Build PEFT's configuration from allowed fields, with the errors of `filter_fields` and those that PEFT raises."""
    seen = filter_fields(fields, widest)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(seen["peft_type"])]
    return config_class.from_peft_type(**config_class.check_kwargs(**seen))


def filter_fields(fields: Fields, widest: int) -> dict[str, Any]:
    """Return the fields of a configuration, of any method but LSR, that are passed on to PEFT.

    `widest` is the largest possible rank of a matrix of the base model.

    Raises:
        ValueError: if a field or the method is not allowed; names it, and what is allowed.
    """
    method = fields["peft_type"]
    if method not in PeftType.__members__:
        raise ValueError(f"PEFT has no method {method!r}, and no imported module has registered one of this name")
    if method not in _ALLOWED:
        raise ValueError(f"adapters of the method {method} are not loaded: its fields are not on the list of safe ones")
    known = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)].__dataclass_fields__
    seen = {name: value for name, value in fields.items() if not _only_initializes(name, fields)}
    for name, value in seen.items():
        got = f"got {shortened(value)}"
        if name in known and name not in _ALLOWED[method] and value != _default(known[name]):
            raise ValueError(f"{name}: {method} is loaded without it, {got}")
        needed = _misfit(name, value)
        if needed:
            raise ValueError(f"{name} must be {needed}, {got}")
    rank = seen.get("r", 1)
    if method == "UNILORA" and not _is_whole(rank, widest):  # UNILORA draws as many indices as a LoRA has entries
        needed = f"a whole number of at most {widest:,}, the largest rank here"
        raise ValueError(f"r must be {needed}, got {shortened(rank)}")
    return seen


def _only_initializes(name: str, fields: Fields) -> bool:
    if name == START:
        return fields[START] in UNUSED_STARTS
    return name in DROPPED or (name == "loftq_config" and fields.get(START) != "loftq")


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _misfit(name: str, value: Any) -> str | None:
    """Return the requirement that a field violates; None if it is valid."""
    if name == START:
        return _misfit_of_start(value)
    if name == "loftq_config":
        is_right = isinstance(value, dict) and all(value.get(key) in allowed for key, allowed in LOFTQ.items())
        return None if is_right else f"2, 4 or 8 loftq_bits and 1 to {MAX_STEPS} loftq_iter"
    if name == "layer_replication" and value is not None:
        return None if _replicates_few(value) else f"pairs of whole numbers, for at most {MAX_LAYERS:,} layers in all"
    if name in STEPS and value is not None and not _is_whole(value, MAX_STEPS):
        return f"a whole number of at most {MAX_STEPS}"
    if name == "theta_d_length" and not _is_whole(value, MAX_VALUES):
        return f"a whole number of at most {MAX_VALUES:,}"
    return None if _count(value) <= MAX_VALUES else f"at most {MAX_VALUES:,} values"


def _misfit_of_start(value: Any) -> str | None:
    text = value.lower() if isinstance(value, str) else ""
    steps = ITERATIONS.fullmatch(text)
    if isinstance(value, bool) or text in STARTS or (steps and int(steps[1]) <= MAX_STEPS):
        return None
    return f"a bool or one of {', '.join(STARTS)}, or pissa_niter_N with N of at most {MAX_STEPS}"


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and value <= most


def _replicates_few(pairs: Any) -> bool:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    if len(pairs) > MAX_LAYERS or not all(_is_whole(index, MAX_LAYERS) for index in chain(*pairs)):
        return False
    return sum(max(0, end - start) for start, end in pairs) <= MAX_LAYERS


def _count(value: Any) -> int:
    """Return the number of values in nested lists and objects."""
    if isinstance(value, Mapping):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, Sequence) and not isinstance(value, str) else 1
