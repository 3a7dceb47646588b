"""DX-Net on BraTS: Table 6 and Figure 12 of the paper.

    python -m weight_port --config=configs/brats_dxnet.py
    python launch.py --config=configs/brats_dxnet.py --workdir=runs/dxnet \\
        --config.data.root=/data/BraTS2021

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it

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

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/brats_dxnet.py:{arg} is unknown; known: :demo, :debug")
    config = common.get_config()

    config.challenge = ConfigDict()
    config.challenge.name = "brats"
    config.challenge.layout = "auto"  # 2020, 2021, 2023, msd or plain; auto: by the file names
    config.challenge.convention = "auto"  # of labels: 2015, 2021, 2023, 2024 or msd
    config.challenge.modalities = config_dict.placeholder(tuple)  # None: flair, t1, t1ce, t2
    config.challenge.et_min_mm3 = 200.0  # a smaller enhancing tumour becomes core
    config.challenge.aggregate = "clean"  # or synapse2022: the platform's own quartiles

    config.model = ConfigDict()
    config.model.name = "dxnet"
    config.model.variant = "paper"  # or released
    config.model.encoder = "efficientnet_b0"
    config.model.norm = config_dict.placeholder(str)  # None: as the variant says; likewise below
    config.model.padding = config_dict.placeholder(str)
    config.model.encoder_eps = config_dict.placeholder(float)
    config.model.drop_path_rate = config_dict.placeholder(float)
    # The encoder along depth, where patches may have fewer or thicker slices than pixels. One
    # number, or one for the stem and each stage: None: as in the plane.
    config.model.depth_kernels = config_dict.placeholder(tuple)  # taps, such as (1,1,1,3,3,3,3,3)
    config.model.depth_strides = config_dict.placeholder(tuple)  # 1 or 2, such as (1,1,2,2,2,1,2,1)
    config.model.depth_padding = "zero"  # or edge, reflect: beyond the first and the last slice
    config.model.factorised = False  # True: depthwise kernels as a plane, then a depth filter
    config.model.dtype = "float32"  # bfloat16 on GPU and TPU
    config.model.ops = "auto"  # convolutions: auto, lax, fast or unfolded

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    config.weights.file = "weights/dxnet_b0_repeat.safetensors"

    if arg:
        demo(config)
    if arg == "debug":
        debug(config)
    return config.lock()


def demo(config: ConfigDict) -> None:
    """Phantoms, 64^3 patches, random weights."""
    config.challenge = ConfigDict({"name": "phantom", "et_min_mm3": 200.0, "aggregate": "clean"})
    config.phantoms = ConfigDict({"n": 20, "seed": 0})  # written to data.root
    config.data.root = "runs/phantoms"
    config.data.patch = (64, 64, 64)
    config.data.split.seed = 3  # holds out one case in four without enhancing tumour
    config.data.foreground = 0.5
    config.weights.file = ""
    config.model.drop_path_rate = 0.0
    config.train.epochs = 9
    config.train.log_every_steps = 4
    config.train.validate_every_epochs = 2
    config.train.validate_from_dice = 0.5
    config.optim.constant_epochs = 5
    config.inference.overlap = 0.25


def debug(config: ConfigDict) -> None:
    """Two steps on four small phantoms."""
    config.phantoms.n = 4
    config.phantoms.shape = (32, 36, 32)
    config.data.root = "runs/phantoms_debug"
    config.data.patch = (32, 32, 32)
    config.data.split.fraction = 0.5
    config.train.epochs = 1
    config.train.log_every_steps = 1
