"""The project's own answer, in docs/study.md: DX-Net on the hippocampus, 150 steps of training.

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/hippocampus --mode=study \\
        --study=configs/studies/hippocampus.py --config.data.root=/data/Task04_Hippocampus

The strides leave 8 voxels at the deepest level, where those of the plane would leave 2.
"""

from ml_collections import ConfigDict

from configs.studies import common, transfer

ARMS = ("random", "mean", "center", "repeat", "shuffled", "redrawn")


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/hippocampus.py:{arg} is unknown; it takes no argument")
    study = transfer.get_config()
    with study.unlocked():
        for name in set(study.arms) - set(ARMS):
            del study.arms[name]
        study.common.update(
            common.changes(
                {
                    "data.patch": (32, 64, 32),
                    "model.depth_strides": (2, 1, 2, 2, 1, 1, 1, 1),
                    "model.depth_kernels": None,
                    "model.norm": "instance",
                    "train.batch_size": 1,
                    "train.steps_per_epoch": 15,
                    "train.epochs": 10,
                    "optim.constant_epochs": 5,
                    "train.log_every_steps": 5,
                }
            )
        )
    return study.lock()
