"""Parts of shuffled weights by themselves: the norms' scales and biases, the scales of the kernels.

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/parts --mode=study \\
        --study=configs/studies/parts.py --config.data.root=/data/Task04_Hippocampus

`norms` has kernels as drawn for a network without weights, `kernels` norms as they start there.
"""

from ml_collections import ConfigDict

from configs.studies import common, hippocampus


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/parts.py:{arg} is unknown; it takes no argument")
    study = common.get_config()
    study.question = "What of ImageNet weights helps that is not in the order of their numbers?"
    shuffled = {"weights.inflate": "center", "weights.control": "shuffled"}
    study.arms = common.arms(
        {
            "random": {"weights.file": ""},
            "shuffled": shuffled,
            "kernels": shuffled | {"weights.skip": ("encoder/.*(scale|bias)",)},
            "norms": {"weights.inflate": "center", "weights.skip": ("encoder/.*kernel",)},
        }
    )
    study.reference = "random"
    study.compare = (("shuffled", "norms"), ("shuffled", "kernels"))
    study.cases = (20,)
    study.common = hippocampus.get_config().common
    return study.lock()
