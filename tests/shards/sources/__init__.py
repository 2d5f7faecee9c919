"""Tests of shards/sources: every source against independent readings of its raw files."""
