"""Comparisons with public implementations of the same model."""
