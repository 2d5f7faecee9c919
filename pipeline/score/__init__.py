"""Scores: inference, evaluation, and metrics."""
