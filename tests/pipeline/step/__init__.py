"""Tests of pipeline/step/."""
