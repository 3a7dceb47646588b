"""Offline tools that turn 2D classifiers' weights into this project's 2D and 3D encoders.

The only code of the project that may import torch or timm, and only where it must: converting a
.safetensors checkpoint needs neither. `python -m weight_port --help`.
"""
