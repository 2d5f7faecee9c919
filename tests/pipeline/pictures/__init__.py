"""Tests of pipeline/pictures/."""
