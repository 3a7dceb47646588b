"""Does what 2D weights are worth depend on encoder and normalisation? A product of three axes.

    for name in tf_efficientnet_lite0.in1k tf_efficientnet_lite1.in1k; do
      python -m weight_port $name --out=weights/${name}_2d.safetensors; done
    python launch.py --config=configs/dataset_dxnet.py --workdir=runs/norms --mode=study \\
        --study=configs/studies/norms.py --config.data.root=/data/Task04_Hippocampus

The arms are "lite0-instance-random", "lite0-instance-center" and so on. What is compared besides is
`center` with `random` within each encoder and norm.
"""

from ml_collections import ConfigDict

from configs.studies import common, transfer

ENCODERS = ("lite0", "lite1")
NORMS = ("instance", "group", "batch")


def get_config(arg: str = "") -> ConfigDict:
    """The study; takes no `arg`."""
    if arg:
        raise ValueError(f"configs/studies/norms.py:{arg} is unknown; it takes no argument")
    study = common.get_config()
    study.question = "Are 2D weights worth more with another encoder or another normalisation?"
    study.axes.encoder = common.arms({name: _encoder(name) for name in ENCODERS})
    study.axes.norm = common.arms({norm: {"model.norm": norm} for norm in NORMS})
    study.axes.start = common.arms(  # the last axis has the last word on the file
        {"random": {"weights.file": ""}, "center": {"weights.inflate": "center"}}
    )
    pairs = [f"{encoder}-{norm}" for encoder in ENCODERS for norm in NORMS]
    study.reference = f"{pairs[0]}-random"
    study.compare = tuple((f"{pair}-center", f"{pair}-random") for pair in pairs[1:])
    study.cases = (20,)
    study.common = transfer.get_config().common
    return study.lock()


def _encoder(name: str) -> dict[str, str]:
    source = f"tf_efficientnet_{name}.in1k"
    return {
        "model.encoder": f"efficientnet_{name}",
        "weights.source": source,
        "weights.file": f"weights/{source}_2d.safetensors",
    }
