"""Shared by all stages and commands: paths and writers, the console, and one-line errors."""
