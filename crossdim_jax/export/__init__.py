"""Trained networks as ONNX, in folders that say all that is needed to use them without JAX."""
