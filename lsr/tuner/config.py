"""LsrConfig: the options of an LSR adapter, and the shapes of a saved adapter's layers."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import InitVar, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftType

from lsr.algebra.separable import FactorShapes
from lsr.init import INITIALIZATIONS
from lsr.tuner.card import Card
from lsr.tuner.injected import Injected, Resolved
from lsr.tuner.options import (
    CORED,
    PATTERNS,
    TERMS,
    Fields,
    check_options,
    default_separation_rank,
    exact_patterns,
    matches,
    override,
    usual_and_others,
)

DIAGONAL = 8  # divides alpha if the core is diagonal: its directions are independent, whatever r is


def _as_tuple(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)


def _option(default: Any, text: str) -> Any:
    """Return a dataclass field; a type as default makes empty values. `text` is shown in the reference."""
    default = {"default_factory" if isinstance(default, type) else "default": default}
    return field(**default, metadata={"help": text})


@dataclass
class LsrConfig(PeftConfig):
    """Configuration of an LSR adapter, of one of two families.

    Separable sums: ΔW = alpha / r * (sum_k B1_k ⊗ B2_k) (sum_k A1_k ⊗ A2_k), of rank r = r1 * r2, the product of
    `rank_shape`; all factors are trained. With a single rank, A and B are dense.

    A core: ΔW = alpha / r * B R A, if `train` is `core` or `all`, with r x r entries between dense bases A and B. With
    `share="layers"` all layers of a group, whose names differ only in the index, share A and B; each has its own core.

    Raises:
        ValueError: if a value is out of bounds; names the field and what is allowed.

    Reference: Li & Sarwate 2025 (arXiv 2502.13568).
    """

    rank_shape: tuple[int, ...] = _option(
        (2, 2), "Ranks (r1, r2) of the Kronecker factors; their product is the rank. (r,): A and B are dense."
    )
    separation_rank: int | None = _option(
        None,
        "Number of Kronecker terms in each of A and B, which determines the number of their parameters. "
        f"None: {TERMS}, or 1 with a single factor.",
    )
    share: str = _option(
        "none", "'none': each layer has its own A and B. 'layers': the layers of a group share them; each has a core."
    )
    alpha: float = _option(16, "Numerator of the scaling, alpha / rank.")
    init_weights: bool | str = _option(
        True,
        "Name of the initialization. True or 'random': as LoRA. 'principal', 'gradient', 'lora_update': A and B from "
        "the weight, from the gradient over examples, or from the update of a short LoRA run on them; 'warm_start': "
        "that update and the head of that run; see `lsr.initialize_from_data`. Around a core, A and B are orthonormal "
        "bases, random or leading singular vectors, and the core is zero, or with 'warm_start' the update between "
        "them. False: all random, for tests. Only False and 'warm_start' change the output of a fresh model.",
    )
    train: str = _option(
        "factors",
        "What to train. 'factors': all factors. 'core': a core between the frozen bases A and B. 'all': the core, "
        "A and B. A core needs one rank in rank_shape.",
    )
    core: str = _option(
        "full",
        "Form of the core, if there is one. 'full': r x r. 'diagonal': r entries, so that the i-th direction of A is "
        "mapped only to the i-th of B.",
    )
    seed: int | None = _option(
        None, "Seed of the initial factors, mixed with each layer's name. None: torch's global generator."
    )
    dropout: float = _option(0.0, "Probability of dropping an input of the adapter.")
    target_modules: list[str] | str | None = _option(
        None,
        "Layers to adapt: a list of name endings, a regular expression, or 'all-linear'. None: the default layers of "
        "the architecture. Each entry of a list must match.",
    )
    exclude_modules: list[str] | str | None = _option(
        None, "Layers to leave out: a list of name endings or a regular expression."
    )
    layers_to_transform: list[int] | int | None = _option(
        None, "Indices of the transformer layers to adapt; None: all."
    )
    layers_pattern: list[str] | str | None = _option(None, "Name of the module list that layers_to_transform indexes.")
    rank_pattern: dict[str, tuple[int, ...]] = _option(
        dict, "Name ending or regular expression -> rank_shape of those layers."
    )
    alpha_pattern: dict[str, float] = _option(dict, "Name ending or regular expression -> alpha of those layers.")
    bias: str = _option("none", "Biases to train: 'none', 'all', or 'lsr_only' for those of adapted layers.")
    modules_to_save: list[str] | None = _option(None, "Modules to train and save in full, such as a new head.")

    resolved: Resolved | None = _option(None, "Shapes of the layers of a saved adapter. Not to be set by hand.")

    frames: InitVar[str] = "own"  # field of files of early versions, some of which hold a core alone

    def __post_init__(self, frames: str) -> None:
        super().__post_init__()
        if frames != "own":
            raise ValueError(
                f"frames={frames!r} of an early adapter is not supported: "
                "export it as LoRA with the version of lsr that saved it"
            )
        self.peft_type = PeftType("LSR")
        self.rank_shape = _as_tuple(self.rank_shape)
        for name in PATTERNS:
            setattr(self, name, getattr(self, name) or {})
        if self.separation_rank is None:
            self.separation_rank = default_separation_rank(self.rank_shape)
        self.rank_pattern = {name: _as_tuple(shape) for name, shape in self.rank_pattern.items()}
        if self.resolved is not None and not isinstance(self.resolved, Resolved):
            self.resolved = Resolved.from_fields(self.resolved)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        self.folder: Path | None = None  # folder from which it was read, if it was
        self.injected: Injected | None = None  # the record of the adapter made from it
        check_options(self)

    @property
    def initialization(self) -> str:
        """Name of the initialization; False maps to 'random', which differs only in B."""
        return self.init_weights if isinstance(self.init_weights, str) else "random"

    @property
    def has_core(self) -> bool:
        """Whether there is a core between A and B."""
        return self.train in CORED

    @property
    def needs_examples(self) -> bool:
        """Whether the initialization needs examples."""
        return INITIALIZATIONS[self.initialization].read is not None

    @classmethod
    def read(cls, fields: Fields, folder: Path) -> "LsrConfig":
        """Build the configuration from fields that were read from a folder, and remember the folder."""
        config = cast("LsrConfig", cls.from_peft_type(**deepcopy(dict(fields))))
        config.folder = folder
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Load the configuration of a folder or hub repository, as PEFT does, and remember the folder."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if isinstance(config, cls) and folder.is_dir():
            config.folder = folder
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the configuration as PEFT does, and replace the empty model card that PEFT has just written."""
        super().save_pretrained(save_directory, **kwargs)
        labels = None if self.injected is None else self.injected.labels
        Card(self.base_model_name_or_path, self.revision, self.task_type, labels).write(Path(save_directory))

    def ranks(self, layer_name: str) -> tuple[int, ...]:
        """Return the rank shape of a layer."""
        return override(self.rank_pattern, layer_name, self.rank_shape)

    def terms(self, layer_name: str) -> int:
        """Return the separation rank of a layer: the default if it is the only dense or the only factored layer."""
        ranks = self.ranks(layer_name)
        is_usual = (len(ranks) > 1) == (len(self.rank_shape) > 1)  # otherwise no number of terms was chosen for it
        return cast("int", self.separation_rank) if is_usual else default_separation_rank(ranks)

    def scaling(self, layer_name: str, form: FactorShapes) -> float:
        """Return the scaling of a layer's update, alpha / r.

        With a diagonal core it is alpha / 8: the directions are independent, however many there are.
        """
        alpha = override(self.alpha_pattern, layer_name, self.alpha)
        return alpha / (DIAGONAL if self.core == "diagonal" else form.rank)

    def with_ranks(self, ranks: Mapping[str, int]) -> "LsrConfig":
        """Return a copy for an adapter with dense bases of these ranks, on these layers only."""
        usual, others = usual_and_others({name: (rank,) for name, rank in ranks.items()})
        alphas = {key: alpha for key, alpha in self.alpha_pattern.items() if any(map(partial(matches, key), ranks))}
        return replace(
            self,
            rank_shape=usual,
            separation_rank=1,
            rank_pattern=exact_patterns(others),
            alpha_pattern=alphas,
            target_modules=list(ranks),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, including those of the adapter made from it; sets become sorted lists."""
        fields = {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}
        if self.modules_to_save:  # PEFT appends the names of common heads each time an adapter is loaded
            fields["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        if self.injected is not None:
            fields["resolved"] = asdict(self.injected.resolved)
            fields["init_weights"] = self.injected.init_weights
        return fields
