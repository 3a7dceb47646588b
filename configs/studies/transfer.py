"""Does it help to start from ImageNet, which inflation helps most, and is it what was learned?

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/study --mode=study \\
        --study=configs/studies/transfer.py --config.data.root=/data/Task04_Hippocampus

One 2D weight file is inflated in every mode. Two arms are controls, inflated as `center`: weights
whose numbers are shuffled within each kernel, which keep their scale and the norms, and kernels
redrawn as the 2D network was once initialised. What `center` has over them was learned on
photographs; what they have over `random` is a better scale.
"""

from ml_collections import ConfigDict

from configs.studies import common


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/transfer.py:{arg} is unknown; it takes no argument")
    study = common.get_config()
    study.question = "Does a 3D network learn more from few cases if it starts from 2D weights?"
    study.arms = common.arms(
        {
            "random": {"weights.file": ""},
            "mean": {"weights.inflate": "mean"},
            "center": {"weights.inflate": "center"},
            "repeat": {"weights.inflate": "repeat"},
            "gaussian": {"weights.inflate": "gaussian"},
            "acs": {"weights.inflate": "acs"},
            "shuffled": {"weights.inflate": "center", "weights.control": "shuffled"},
            "redrawn": {"weights.inflate": "center", "weights.control": "random"},
        }
    )
    study.reference = "random"
    study.compare = (("center", "shuffled"), ("center", "redrawn"))
    study.cases = (5, 20, 80)
    study.common = common.changes(
        {
            "model.encoder": "efficientnet_lite0",
            "weights.file": "weights/lite0_2d.safetensors",
            "weights.source": "tf_efficientnet_lite0.in1k",
            "data.split.kind": "all",  # but for the test set
            "data.split.test": 0.2,
            "train.validate_from_dice": 1.0,  # never: nothing is chosen
        }
    )
    return study.lock()
