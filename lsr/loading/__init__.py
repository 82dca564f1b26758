"""Adapters and base models from folders, the hub or installed packages: untrusted, so read within limits."""
