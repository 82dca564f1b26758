"""Names of the entries that a bank has for groups of tenants, which share the rows of a head in training.

Tenants with the same set of labels, in any order, form a group, and so do tenants that predict a number. An entry has
the group's rows of the head's last layer, without the deviation of any tenant: the rows for a tenant without examples.
They are in the order of the entry's `labels` in its task info, sorted by code point, and its temperature is its own.
An entry is neither listed nor asked for by its name, which no tenant can have.
"""

import hashlib
import json
from collections.abc import Iterable

DIGITS = 16  # hexadecimal digits of a hash of the labels


def name_group(labels: Iterable[str] | None) -> str:
    """Return the name of the entry of the tenants with these labels, in any order; None is for those with a number."""
    content = json.dumps(None if labels is None else sorted(labels))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"__group_{digest[:DIGITS]}__"
