"""Four real cases, each left out once: DX-Net, or with `:dsnet` DS-Net, from ImageNet or not.

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/brats_dxnet.py --workdir=runs/brats2015 --mode=study \\
        --study=configs/studies/brats2015.py --config.data.root=/data/brats2015

    python launch.py --config=configs/brats_dsnet.py --workdir=runs/dsnet2015 --mode=study \\
        --study=configs/studies/brats2015.py:dsnet --config.data.root=/data/brats2015

The root holds folders of two modalities, CASE/CASE_flair.nii.gz and CASE_t1ce.nii.gz.
"""

from ml_collections import ConfigDict

from configs.studies import common


def get_config(arg: str = "") -> ConfigDict:
    """The study; `arg` is "" or "dsnet"."""
    if arg not in ("", "dsnet"):
        raise ValueError(f"configs/studies/brats2015.py:{arg} is unknown; known: :dsnet")
    study = common.get_config()
    study.question = "Does ImageNet help where there are three cases to learn from?"
    imagenet = {"imagenet": {}} if arg else {"center": {"weights.inflate": "center"}}
    study.arms = common.arms({"random": {"weights.file": ""}, **imagenet})
    study.reference = "random"
    study.seeds = (0, 1, 2, 3)
    study.fold_by_seed = True
    study.common = common.changes(
        {
            "challenge.layout": "plain",
            "challenge.convention": "2015",
            "challenge.modalities": ("flair", "t1ce"),
            "data.split.kind": "kfold",
            "data.split.folds": 4,
            "data.patch": (97, 64, 64) if arg else (64, 64, 64),
            "data.foreground": 0.5,
            "inference.overlap": 0.25,
            "model.encoder": "efficientnet_lite0",
            "weights.file": "weights/lite0_2d.safetensors",
            "weights.source": "tf_efficientnet_lite0.in1k",
            "train.steps_per_epoch": 5 if arg else 10,
            "train.epochs": 8,
            "optim.constant_epochs": 4,
            "train.log_every_steps": 5,
            "train.validate_from_dice": 1.0,
            "train.validate_every_epochs": 8,
        }
    )
    return study.lock()
