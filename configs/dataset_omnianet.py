"""Omnia-Net on a data set of one's own: pictures, or volumes slice by slice.

    python -m weight_port --config=configs/dataset_omnianet.py
    python launch.py --config=configs/dataset_omnianet.py --workdir=runs/mine \\
        --config.data.root=/data/Dataset120_RoadSegmentation

Every slice is brought to `data.patch` (row, column), and predictions back to its own size. The root
is as in configs/dataset_dxnet.py; pictures (PNG, TIFF, JPEG) are volumes of one slice, the colours
of an RGB file its three channels.

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it
"""

from ml_collections import ConfigDict

from configs import dataset_common, omnianet_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/dataset_omnianet.py:{arg} is unknown; known: :demo, :debug")
    config = dataset_common.get_config()
    omnianet = omnianet_common.get_config()
    config.model, config.optim = omnianet.model, omnianet.optim
    dataset_common.auto(config.optim, "decay_per_epoch")  # to learning_rate_end at the end

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    config.weights.file = "weights/omnianet_b0_16ch.safetensors"

    config.data.foreground = 0.0  # slices are whole

    if arg:
        dataset_common.phantoms(config, (64, 64), n=8, shape=(24, 64, 72))
        config.train.epochs = None  # until learning_rate_end
        config.train.batch_size = omnianet.train.batch_size
        config.optim.learning_rate = 2e-3
        config.optim.learning_rate_end = 3e-4
        config.optim.decay_per_epoch = 0.75  # 7 epochs
        config.train.log_every_steps = 4
        config.train.validate_every_epochs = 3
    if arg == "debug":
        dataset_common.debug(config, (24, 36, 32))
        config.data.patch = (32, 32)
        config.train.batch_size = 24  # half of the slices
    return config.lock()
