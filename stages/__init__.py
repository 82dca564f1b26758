"""The stages. `python -m stages.NAME` imports this first, to compute the digests of our code before other imports."""

from pipeline.core import digests

digests.of_code_at_start()
