"""DX-Net on a data set of one's own: a folder with a dataset.json.

    python -m weight_port --config=configs/dataset_dxnet.py
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/mine \\
        --config.data.root=/data/Dataset004_Hippocampus
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/mine --mode=predict \\
        --input=/data/new            # CASE_0000.nii.gz, and one file for each further channel

The root is a raw folder of nnU-Net, a task of the Medical Segmentation Decathlon, a folder with a
datalist of MONAI, or two folders `images` and `labels` with equal file names.

Nothing else need be set: spacing, patch, batch, depth of the encoder and length of the training
follow from the data. --mode=plan shows the plan and its reasons.

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it
"""

from ml_collections import ConfigDict, config_dict

from configs import dataset_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/dataset_dxnet.py:{arg} is unknown; known: :demo, :debug")
    config = dataset_common.get_config()

    config.model = ConfigDict()
    config.model.name = "dxnet"
    config.model.variant = "paper"
    config.model.encoder = "efficientnet_b0"
    config.model.norm = config_dict.placeholder(str)  # None: as the variant says; likewise below
    config.model.padding = config_dict.placeholder(str)
    config.model.encoder_eps = config_dict.placeholder(float)
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.dtype = "float32"  # bfloat16 on GPU and TPU
    config.model.ops = "auto"  # convolutions: auto, lax, fast or unfolded
    # The encoder along depth, where voxels are thicker than wide: one number, or one for the stem
    # and each stage; None: as in the plane.
    dataset_common.auto(config.model, "depth_kernels")  # taps, such as (1,1,1,3,3,3,3,3)
    dataset_common.auto(config.model, "depth_strides")  # 1 or 2, such as (1,1,2,2,2,1,2,1)
    config.model.depth_padding = "zero"  # or edge, reflect: beyond the first and the last slice
    config.model.factorised = False  # True: depthwise kernels as a plane, then a depth filter

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    config.weights.file = "weights/dxnet_b0_repeat.safetensors"

    if arg:
        dataset_common.phantoms(config, (32, 64, 64), n=20, shape=(40, 64, 72))
        config.model.depth_kernels = config.model.depth_strides = None
        config.train.epochs = 6
        config.train.log_every_steps = 4
        config.train.validate_every_epochs = 3
        config.optim.constant_epochs = 3
    if arg == "debug":
        dataset_common.debug(config, (32, 36, 32))
        config.data.patch = (32, 32, 32)
    return config.lock()
