"""Adapters and base models from folders, the hub or installed packages: what strangers made, read within limits."""
