"""The 2D network on slices of the hippocampus: from ImageNet, from its control, or from nothing.

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/dataset_omnianet.py --workdir=runs/omnianet --mode=study \\
        --study=configs/studies/omnianet.py --config.data.root=/data/Task04_Hippocampus
"""

from ml_collections import ConfigDict

from configs.studies import common


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/omnianet.py:{arg} is unknown; it takes no argument")
    study = common.get_config()
    study.question = "Does a 2D network learn more from 20 cases if it starts from ImageNet?"
    study.arms = common.arms(
        {
            "random": {"weights.file": ""},
            "imagenet": {},
            "shuffled": {"weights.control": "shuffled"},
        }
    )
    study.reference = "random"
    study.compare = (("imagenet", "shuffled"),)
    study.cases = (20,)
    study.common = common.changes(
        {
            "data.patch": (64, 64),
            "data.split.kind": "all",  # but for the test set
            "data.split.test": 0.2,
            "model.encoder": "efficientnet_lite0",
            "weights.file": "weights/lite0_2d.safetensors",
            "weights.source": "tf_efficientnet_lite0.in1k",
            "train.batch_size": 8,
            "train.steps_per_epoch": 15,
            "train.epochs": 10,
            "optim.learning_rate": 1e-3,
            "optim.learning_rate_end": 1e-5,
            "optim.decay_per_epoch": 0.6,
            "train.log_every_steps": 5,
        }
    )
    return study.lock()
