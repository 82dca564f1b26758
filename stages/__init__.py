"""The stages. `python -m stages.NAME` imports this first, which notes the digests of our code before the rest of it."""

from pipeline.core import digests

digests.of_code_at_start()
