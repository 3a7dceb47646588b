"""Checkpoint formats and naming schemes that people hold, one file each."""
