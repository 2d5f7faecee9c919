"""Tests of the shard builder."""
