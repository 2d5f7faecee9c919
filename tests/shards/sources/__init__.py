"""Tests of shards/sources/."""
