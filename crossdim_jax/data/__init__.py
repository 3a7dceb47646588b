"""Data of a training: cache of prepared cases, splits, batches, augmentation."""
