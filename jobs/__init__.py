"""The commands behind launch.sh."""

__version__ = "0.1.0"  # the version in pyproject.toml
