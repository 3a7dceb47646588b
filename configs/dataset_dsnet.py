"""DS-Net on a data set of one's own: a folder with a dataset.json, see configs/dataset_dxnet.py.

    python -m weight_port --config=configs/dataset_dsnet.py
    python launch.py --config=configs/dataset_dsnet.py --workdir=runs/mine \\
        --config.data.root=/data/Dataset009_Spleen

For volumes of many slices: patches have at least 97.

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it
"""

from ml_collections import ConfigDict, config_dict

from configs import dataset_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/dataset_dsnet.py:{arg} is unknown; known: :demo, :debug")
    config = dataset_common.get_config()

    config.model = ConfigDict()
    config.model.name = "dsnet"
    config.model.variant = "paper"
    config.model.encoder = "efficientnet_b0"
    config.model.norm = config_dict.placeholder(str)  # None: as the variant says; likewise below
    config.model.padding = config_dict.placeholder(str)
    config.model.encoder_eps = config_dict.placeholder(float)
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.dtype = "float32"  # bfloat16 on GPU and TPU
    config.model.ops = "auto"  # convolutions: auto, lax, fast or unfolded

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    config.weights.file = "weights/dsnet_b0_2d.safetensors"

    if arg:
        dataset_common.phantoms(config, (97, 32, 64), n=12, shape=(97, 64, 72))
        config.data.root = "runs/dataset_phantoms_97"
        config.train.epochs = 6
        config.train.log_every_steps = 4
        config.train.validate_every_epochs = 6
        config.optim.constant_epochs = 3
    if arg == "debug":
        dataset_common.debug(config, (97, 36, 32))
        config.data.patch = (97, 32, 32)
    return config.lock()
