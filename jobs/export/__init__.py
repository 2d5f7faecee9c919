"""Weights and programs of a run for other libraries and runtimes."""
