"""Tests of shards/format/."""
