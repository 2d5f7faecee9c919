"""Agreement with public implementations of the same model."""
