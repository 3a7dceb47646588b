"""The record of a weight file for DX-Net, in its two halves: what it is, and how it was made."""

NETWORK = {
    "architecture": "efficientnet_b0",
    "ndim": 3,
    "in_channels": 16,
    "padding": "same",
    "eps": 1e-3,
    "norm": "instance",
}
CLAIMS = {"source": "tf_efficientnet_b0.ns_jft_in1k", "inflate": "repeat", "stem": "tile"}
RECORD = {
    "source": "timm",
    "id": CLAIMS["source"],
    **NETWORK,
    "inflate": CLAIMS["inflate"],
    "stem": CLAIMS["stem"],
}
