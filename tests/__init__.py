"""The tests, in folders with the names of the packages that they test.

- `parity` compares the model with public implementations.
- `faults` kills processes and damages files during a run.
- `test_layers` holds the packages to the imports that their docstrings allow.

A test of a formula compares with something that is not code of this project: the formula in
float64, another library, or an official file. Tests over five seconds are marked `slow`, and tests
that need a GPU are marked `gpu`.
"""
