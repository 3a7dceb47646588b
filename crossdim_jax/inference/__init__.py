"""Whole images through a network: in windows or in one piece."""
