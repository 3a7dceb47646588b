"""Predictions on disk and their scores."""
