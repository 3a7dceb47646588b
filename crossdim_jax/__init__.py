"""Cross-dimensional transfer learning for medical image segmentation, in JAX.

After Messaoudi et al., "Cross-dimensional transfer learning in medical image segmentation with
deep learning", Medical Image Analysis 2023.
"""

__version__ = "0.1.0"
