"""Tests of the network, its losses and its segmentations."""
