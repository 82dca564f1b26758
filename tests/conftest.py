"""Settings for all tests: no hub, no deadline on a first call, one thread."""

import os

# Before anything imports transformers or datasets: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from hypothesis import settings

# The first call of many a torch operation takes longer than hypothesis' 200 ms.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Models this small lose more to waking threads than they gain; and sums keep one order, which `torch.equal` needs.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Put what runs whole pipelines first: last, it would leave all workers but one without work for minutes."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
