"""The sections of params.yaml for the methods: the options of each, with PEFT's names where it has them."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from pipeline.params.rows import Word
from pipeline.params.sections import Alpha, Count, Dropout, Layers, Rank, Rate, Section, Shape, Targets, Widths
from pipeline.params.sources import all_different

READ = ("gradient", "update", "warm")  # initializations of LSR that read examples
CORED = ("core", "all")  # what LSR trains if there is a core
SUBTRACTED = ("pissa", "olora")  # initializations of LoRA that are subtracted from the base weight
PUBLISHED = "published"  # target_modules: the authors' choice, from PEFT's table of architectures
Bounded = Annotated[StrictFloat, Field(gt=0, le=1_000_000)]
FramesDtype = Literal["float32", "bfloat16", "int8", "sign"]
HeadSteps = Annotated[StrictInt, Field(ge=0, le=1_000_000)]


class MethodParams(Section):
    """The section of a method. Its row in pipeline/methods/table.py defines how it is trained."""

    word: ClassVar[str]  # the value of `adapter` that selects it, and its key in params.yaml
    exports: ClassVar[tuple[str, ...]] = ("merged",)  # the formats of evaluate.export that it supports
    listed: ClassVar[tuple[str, ...]] = ("default",)  # words of target_modules among whose layers `layers` can choose

    def filled(self) -> "MethodParams":
        """Return the section to train with: this one, or the section of the method that this is a special case of."""
        return self

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return False

    @model_validator(mode="after")
    def _layers_are_chosen_among_those_that_are_listed(self) -> Self:
        targets = getattr(self, "target_modules", ())
        if getattr(self, "layers", "all") != "all" and isinstance(targets, str) and targets not in self.listed:
            # PEFT refuses an expression, and would adapt every layer with all-linear.
            allowed = " or ".join((*self.listed, "a list"))
            raise ValueError(f"layers: needs target_modules to be {allowed}; got target_modules: {targets}")
        return self


class LsrParams(MethodParams):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `layers` its `layers_to_transform`, `auto` its None."""

    word = "lsr"
    exports = ("lora", "merged")
    listed = ("default", "all-linear")
    init_key: ClassVar[str] = "lsr.init"  # what a message about the initialization names

    rank_shape: Shape
    separation_rank: Literal["auto"] | Count  # the upper bound depends on the layers' shapes
    share: Literal["none", "layers"] = Field(description="whether all layers of a kind share A and B")
    train: Literal["factors", "first", "core", "all"] = Field(
        description="trainable: all factors; A1 and B1; a core between frozen frames; the core and the factors"
    )
    core: Literal["full", "diagonal"]
    init: Literal["random", "principal", "gradient", "update", "warm"]
    frames: StrictStr = Field(
        min_length=1, description="own, or the folder or hub repository of an adapter with the frames"
    )
    frames_from: Annotated[tuple[Word, ...], AfterValidator(all_different)] = Field(
        description="data rows whose gradients or updates are pooled into the frames; none: only the selected row"
    )
    frames_dtype: FramesDtype = Field(description="to which frozen frames are rounded before training")
    alpha: Alpha
    examples: Count = Field(description="from the train split, for gradient, update and warm")
    head_steps: HeadSteps = Field(description="steps to fit the head before gradient, update and warm")
    budget: Literal["none"] | Count = Field(
        description="directions of diagonal cores, distributed over the target layers by gradient or update"
    )
    dropout: Dropout
    in_shape: Literal["auto"] | Widths
    out_shape: Literal["auto"] | Widths
    target_modules: Targets
    layers: Layers
    learning_rate: Rate = Field(description="of factors and cores: peak, per optimizer step")

    @model_validator(mode="after")
    def _frames_are_pooled_from_gradients(self) -> Self:
        if self.frames_from and not (self.reads_examples and self.init != "warm"):
            raise ValueError(
                "frames_from: pools gradients or updates, so it needs init: gradient or update, and frames: own; got "
                f"init: {self.init} and frames: {self.frames}"
            )
        return self

    @model_validator(mode="after")
    def _a_budget_is_spent_by_what_examples_say(self) -> Self:
        needed = {
            "init": READ,
            "frames": ("own",),
            "share": ("none",),
            "train": CORED,
            "core": ("diagonal",),
        }
        wrong = [f"{name}: {getattr(self, name)}" for name, words in needed.items() if getattr(self, name) not in words]
        if self.budget != "none" and wrong:
            rules = ", ".join(f"{name}: {' or '.join(words)}" for name, words in needed.items())
            raise ValueError(f"budget: needs {rules}; got {', '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _words_go_together(self) -> Self:
        for mistake in self._mistakes():
            raise ValueError(mistake)
        return self

    def _mistakes(self) -> Iterator[str]:
        """Yield what `lsr.LsrConfig` would refuse, which has other names and knows no model either."""
        ranks, has_core, is_dense = len(self.rank_shape), self.train in CORED, len(self.rank_shape) == 1
        train = f"train: {self.train}"
        if self.share == "layers" and not has_core:
            yield f"share: layers needs train: core or all, or each layer would have the same update; got {train}"
        if self.core == "diagonal" and not (has_core and is_dense):
            shape = f"rank_shape: {list(self.rank_shape)}"
            yield f"core: diagonal needs train: core or all, and one rank in rank_shape; got {train} and {shape}"
        if self.frames != "own" and self.train != "core":
            yield f"frames: those of another adapter need train: core, because they stay as they are; got {train}"
        if self.frames_dtype != "float32" and self.train != "core":
            frozen = "needs train: core, because only frozen frames are rounded"
            yield f"frames_dtype: {self.frames_dtype} {frozen}; got {train}"
        if self.frames_dtype == "sign" and not is_dense:
            yield f"frames_dtype: sign needs one rank in rank_shape; got rank_shape: {list(self.rank_shape)}"
        if is_dense and self.separation_rank not in ("auto", 1):
            wanted = "must be auto or 1 with one rank in rank_shape, because A and B are then dense"
            yield f"separation_rank: {wanted}; got {self.separation_rank}"
        for key in ("in_shape", "out_shape"):
            sizes = getattr(self, key)
            if sizes != "auto" and len(sizes) != ranks:
                yield f"{key}: must hold as many sizes as rank_shape ranks, {ranks}; got {list(sizes)}"

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return self.init in READ and self.frames == "own"


def quantizes_nothing(init: str) -> str:
    """Check an initialization of LoRA for pydantic.

    Raises:
        ValueError: if it is for a quantized base model only.
    """
    if init == "loftq":
        raise ValueError(
            "loftq compensates for quantization, but the base model is in full precision here; allowed "
            f"are random, {', '.join(SUBTRACTED)} and eva"
        )
    return init


class LoraParams(MethodParams):
    """Fields of `peft.LoraConfig`; `init` is its `init_lora_weights`, where `random` is its default."""

    word = "lora"

    r: Rank
    lora_alpha: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    lora_dropout: Dropout
    use_rslora: StrictBool = Field(description="whether the scale is lora_alpha / sqrt(r), not lora_alpha / r")
    use_dora: StrictBool = Field(description="DoRA: the norms of the weight's rows are trained separately")
    init: Annotated[Literal["random", "pissa", "olora", "eva", "loftq"], AfterValidator(quantizes_nothing)]
    examples: Count = Field(description="from the train split, for eva")
    target_modules: Targets
    layers: Layers
    learning_rate: Rate = Field(description="of lora_A and lora_B: peak, per optimizer step")

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return self.init == "eva"


class FullParams(MethodParams):
    """Full fine-tuning: every weight of the base model is trainable."""

    word = "full"

    learning_rate: Rate = Field(description="of the base model: peak, per optimizer step")


class HeadParams(MethodParams):
    """Only the head is trained, with train.head_learning_rate."""

    word = "head"


class LokrParams(MethodParams):
    """Fields of `peft.LoKrConfig`; `decompose_factor: auto`, its -1, cuts widths as evenly as their divisors allow."""

    word = "lokr"

    r: Rank
    alpha: Alpha
    decompose_both: StrictBool = Field(description="whether the first Kronecker factor is of low rank too")
    decompose_factor: Literal["auto"] | Count
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class KronaParams(MethodParams):
    """One Kronecker product of two full factors."""

    word = "krona"

    factor: Literal["auto"] | Count = Field(description="height and width of the first Kronecker factor")
    scale: Bounded = Field(description="the factor by which the product is multiplied")
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class KadaptationParams(MethodParams):
    """Fields of `KadaptationConfig` in pipeline/methods/kadaptation.py."""

    word = "kadaptation"

    n: Annotated[StrictInt, Field(ge=1, le=1024)] = Field(
        description="number of terms, and width of the shared factors"
    )
    r: Rank
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class VeraParams(MethodParams):
    """Fields of `peft.VeraConfig`; its projections are drawn from the seed."""

    word = "vera"

    r: Rank
    d_initial: StrictFloat = Field(ge=-1_000, le=1_000)
    vera_dropout: Dropout
    save_projection: StrictBool = Field(description="whether to save the frozen projections, not their seed")
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class FourierftParams(MethodParams):
    """Fields of `peft.FourierFTConfig`; its frequencies are drawn from the seed."""

    word = "fourierft"

    n_frequency: Count
    scaling: Bounded
    init_weights: StrictBool = Field(description="whether the spectrum starts at zero; the authors draw it")
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class VbloraParams(MethodParams):
    """Fields of `peft.VBLoRAConfig`."""

    word = "vblora"

    r: Rank
    num_vectors: Rank
    vector_length: Rank
    topk: Rank
    vblora_dropout: Dropout
    target_modules: Targets
    layers: Layers
    learning_rate: Rate = Field(description="of the vector bank")
    logits_learning_rate: Rate

    @model_validator(mode="after")
    def _the_bank_has_so_many_vectors(self) -> Self:
        if self.topk > self.num_vectors:
            raise ValueError(f"topk: must not be above num_vectors, {self.num_vectors}; got {self.topk}")
        return self


class UniloraParams(MethodParams):
    """Fields of `peft.UniLoraConfig`; its projection is drawn from the seed."""

    word = "unilora"

    r: Rank
    theta_d_length: Count
    unilora_dropout: Dropout
    save_indices: StrictBool = Field(description="whether the file holds the frozen projection or only its seed")
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class TinyloraParams(MethodParams):
    """Fields of `peft.TinyLoraConfig`; its projections are drawn from the seed."""

    word = "tinylora"

    r: Rank
    u: Rank
    weight_tying: StrictFloat = Field(ge=0, le=1, description="0: each layer has its own parameters; 1: all share them")
    tinylora_dropout: Dropout
    save_projection: StrictBool = Field(
        description="whether the file holds the projections or only their seed; it always holds the singular vectors"
    )
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class C3aParams(MethodParams):
    """Fields of `peft.C3AConfig`; `init_weights: zeros` is its True."""

    word = "c3a"

    block_size: Rank
    init_weights: Literal["zeros", "xavier_uniform", "kaiming_uniform", "gaussian"]
    target_modules: Targets
    layers: Layers
    learning_rate: Rate


class DirectionsParams(MethodParams):
    """LSR with one trained parameter per direction, between frozen frames from a short training run."""

    word = "directions"
    exports = ("lora", "merged")
    listed = ("default", "all-linear")

    budget: Count = Field(description="directions, distributed over the target layers by the short training run")
    init: Literal["update", "warm"]
    frames_dtype: FramesDtype = Field(description="to which the frames are rounded before training")
    alpha: Alpha
    examples: Count = Field(description="from the train split, for the short training run")
    head_steps: HeadSteps = Field(description="steps to fit the head before it")
    dropout: Dropout
    target_modules: Targets
    layers: Layers
    learning_rate: Rate

    def filled(self) -> LsrParams:
        """Return the section of LSR that is this method."""
        same = ("budget", "init", "frames_dtype", "examples", "head_steps")
        fields = _between_frames(self, rank=1) | {name: getattr(self, name) for name in same}
        return DirectionsForm(**fields | {"core": "diagonal"})


class LoraxsParams(MethodParams):
    """LSR with a core between the leading singular vectors of each weight."""

    word = "loraxs"
    exports = ("lora", "merged")
    listed = ("default", "all-linear")

    r: Rank
    alpha: Alpha
    dropout: Dropout
    target_modules: Targets
    layers: Layers
    learning_rate: Rate

    def filled(self) -> LsrParams:
        """Return the section of LSR that is this method."""
        return LoraxsForm(**_between_frames(self, self.r), init="principal", examples=1)


class LorasbParams(MethodParams):
    """LSR with a core between the leading singular vectors of each weight's gradient through a fresh head."""

    word = "lorasb"
    exports = ("lora", "merged")
    listed = ("default", "all-linear")

    r: Rank
    alpha: Alpha
    examples: Count = Field(description="from the train split, for the mean gradient")
    dropout: Dropout
    target_modules: Targets
    layers: Layers
    learning_rate: Rate

    def filled(self) -> LsrParams:
        """Return the section of LSR that is this method."""
        return LorasbForm(**_between_frames(self, self.r), init="gradient", examples=self.examples)


class DirectionsForm(LsrParams):
    """The section of LSR that directions expands to."""

    word = "directions"
    init_key = "directions.init"


class LoraxsForm(LsrParams):
    """The section of LSR that loraxs expands to."""

    word = "loraxs"
    init_key = "loraxs.r"


class LorasbForm(LsrParams):
    """The section of LSR that lorasb expands to."""

    word = "lorasb"
    init_key = "lorasb.examples"


def _between_frames(section: DirectionsParams | LoraxsParams | LorasbParams, rank: int) -> dict[str, Any]:
    """Return the fields of LSR for a trainable core between frozen dense frames, except the frames' initialization."""
    same = ("alpha", "dropout", "target_modules", "layers", "learning_rate")
    return {
        **{name: getattr(section, name) for name in same},
        "rank_shape": (rank,),
        "separation_rank": 1,
        "share": "none",
        "train": "core",
        "core": "full",
        "frames": "own",
        "frames_from": (),
        "frames_dtype": "float32",
        "head_steps": 0,
        "budget": "none",
        "in_shape": "auto",
        "out_shape": "auto",
    }


class Ia3Params(MethodParams):
    """Fields of `peft.IA3Config`."""

    word = "ia3"

    target_modules: Targets = Field(description="published: PEFT's defaults for the architecture; or as elsewhere")
    feedforward_modules: Targets | tuple[StrictStr, ...] = Field(
        description="published, or the modules whose input is scaled instead of their output; [] for none"
    )
    learning_rate: Rate


class BitfitParams(MethodParams):
    """Every bias of the base model is trainable."""

    word = "bitfit"

    learning_rate: Rate


class LnTuningParams(MethodParams):
    """Every normalization layer of the base model is trainable."""

    word = "ln_tuning"

    learning_rate: Rate


class PeftParams(MethodParams):
    """Any other method of the installed PEFT that adapts layers."""

    word = "peft"

    type: StrictStr = Field(min_length=1, max_length=100, description="PEFT's name of the method, such as HRA")
    options: dict[StrictStr, JsonValue] = Field(description="fields of its configuration")
    target_modules: Targets
    learning_rate: Rate


ADAPTERS: dict[str, type[MethodParams]] = {section.word: section for section in MethodParams.__subclasses__()}
