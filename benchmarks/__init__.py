"""Side-by-side comparisons with PyTorch: `python -m benchmarks --size=64`, or `make bench`.

`ours.py` and `theirs.py` hold the two sides of the whole network, `operations.py` both sides of
each operation, `timing.py` the method, `memory.py` the peak memory, `flops.py` the counts that need
no quiet machine. Ours never imports torch, theirs never imports jax: memory is measured apart.
"""
