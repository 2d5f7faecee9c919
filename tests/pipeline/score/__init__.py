"""Tests of pipeline/score/."""
