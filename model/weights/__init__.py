"""Weights of others into our network and ours into their names: official files, transformers."""
