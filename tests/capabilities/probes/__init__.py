"""What users of PEFT expect of a method: one probe per behavior, for LSR or any other method."""

from tests.capabilities.probes import adapters, merging, placement, precision, saving, training

BEHAVIORS = (
    training.BEHAVIORS
    | saving.BEHAVIORS
    | merging.BEHAVIORS
    | adapters.BEHAVIORS
    | placement.BEHAVIORS
    | precision.BEHAVIORS
)
