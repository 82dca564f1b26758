"""What PEFT does not know about the training of its methods: the learning rates of parameters, and which decay."""

from lsr.tuner.options import usual_terms
from lsr.tuner.rates import rate_factor
from pipeline.params import LsrParams, MethodParams
from pipeline.params.sections import RATE

# Parts of the names of parameters for which zero is neither the initial nor a neutral value.
UNDECAYED = ("lora_magnitude_vector", "ia3_l")


def rate_of(section: MethodParams, parameter: str) -> float | None:
    """Return the peak learning rate of an adapter's parameter by its name; None if only the head is trained."""
    usual = section.rates.get(RATE)
    if isinstance(section, LsrParams):
        terms = usual_terms(section.rank_shape) if section.separation_rank == "auto" else section.separation_rank
        return section.learning_rate * rate_factor(parameter, terms)
    own = {name.removesuffix(f"_{RATE}"): rate for name, rate in section.rates.items() if name != RATE}
    return next((rate for part, rate in own.items() if part in parameter), usual)
