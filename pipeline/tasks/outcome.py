"""What a model says of a split, beside what is right."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it takes seconds to import
    from torch import Tensor

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """What a model says of the examples of a split, in their order."""

    outputs: "Tensor"  # (examples, ...), as Task.outputs
    labels: Numbers  # (examples,)
    groups: Numbers | None = None  # (examples,): numbers of groups or tenants, if examples are scored by these
