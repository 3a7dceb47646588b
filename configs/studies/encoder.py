"""How should an encoder with 2D weights be trained: how fast, from when on, with which stem?

    python -m weight_port tf_efficientnet_lite0.in1k --out=weights/lite0_2d.safetensors
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/encoder --mode=study \\
        --study=configs/studies/encoder.py --config.data.root=/data/Task04_Hippocampus
"""

from ml_collections import ConfigDict

from configs.studies import common, transfer


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/encoder.py:{arg} is unknown; it takes no argument")
    study = common.get_config()
    study.question = "Is there a better way to train an encoder that starts from 2D weights?"
    encoder = ("encoder/.*",)
    study.arms = common.arms(
        {
            "plain": {"optim.rates": ()},
            "slow": {"optim.rates": (("encoder/.*", 0.1),)},
            "frozen": {"optim.freeze": encoder},
            "thawed": {"optim.freeze": encoder, "optim.freeze_epochs": 10.0},
            "gray": {"weights.stem": "gray"},
            "random": {"weights.file": ""},
        }
    )
    study.reference = "plain"
    study.cases = (20,)
    study.common = transfer.get_config().common
    with study.common.unlocked():
        study.common.weights.inflate = "center"
    return study.lock()
