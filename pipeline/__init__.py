"""Code shared by the stages. Libraries read the settings here, which disable telemetry, when they are imported."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
