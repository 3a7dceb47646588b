"""Experiments as configs describe them: the edge of the library."""
