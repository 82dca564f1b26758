"""Outputs, scores and pictures."""
