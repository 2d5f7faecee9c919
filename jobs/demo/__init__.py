"""A small painted data set, and the whole main path on it."""
