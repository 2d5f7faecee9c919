"""Recorded training losses that the code must keep."""
