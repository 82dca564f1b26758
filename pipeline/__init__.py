"""What the stages share. Nothing here phones home: the libraries read this setting once, when they are imported."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
