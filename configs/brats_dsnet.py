"""DS-Net on BraTS: Table 5 and Figure 11 of the paper.

    python -m weight_port --config=configs/brats_dsnet.py
    python launch.py --config=configs/brats_dsnet.py --workdir=runs/dsnet \\
        --config.data.root=/data/BraTS2021

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it

The first line writes 2D weights as they are: the three-channel stem stays untouched. The encoder of
an Omnia-Net trained here does as well, without its stem if that is not for three channels (those of
CAMUS and CHAOS are not), see docs/dsnet.md:

    --config.weights.file=runs/camus "--config.weights.skip=('.*/conv_stem/kernel',)" \\
        "--config.weights.ignore=('in_channels',)"

The 2D network at rest for the first five epochs, or slower than the rest throughout:

    "--config.optim.freeze=('net2d/.*',)" --config.optim.freeze_epochs=5
    "--config.optim.rates=(('net2d/.*', 0.1),)"

The released code's network, whose padding and eps are other than those its weights were trained
with, and which takes exactly 128 slices:

    --config.model.variant=released "--config.weights.ignore=('padding', 'eps')"

Published (BraTS 2022 validation, mean Dice): WT .9169, TC .8323, ET .8175; 2 s per training image
on a P100. Not reproduced here yet: that takes the BraTS data and a GPU.

Source: Messaoudi et al. 2023, Sect. 2.1.2 and 3.1.3.
"""

from ml_collections import ConfigDict

from configs import brats_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/brats_dsnet.py:{arg} is unknown; known: :demo, :debug")
    config = brats_common.get_config()
    config.model.name = "dsnet"  # norm, padding, encoder_eps, drop_path_rate: of its 2D network
    config.weights.file = "weights/dsnet_b0_2d.safetensors"

    if arg:
        demo(config)
    if arg == "debug":
        brats_common.debug(config, (97, 32, 32), (97, 36, 32))
    return config.lock()


def demo(config: ConfigDict) -> None:
    """Phantoms of 97 slices, the least that DS-Net takes, and random weights."""
    brats_common.phantoms(config, (97, 32, 64), n=20, shape=(97, 64, 72))
    config.data.root = "runs/phantoms_97"
    config.data.split.seed = 3  # holds out one case in four without enhancing tumour
    config.train.epochs = 7
    config.train.log_every_steps = 4
    config.train.validate_every_epochs = 7
    config.optim.constant_epochs = 4
