"""Tests of shards/build/."""
