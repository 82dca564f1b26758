"""Inference, scores and plots."""
