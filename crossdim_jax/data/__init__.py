"""From image files to batches: reading and writing, preparation, cache, splits, pipeline."""
