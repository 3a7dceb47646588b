"""Omnia-Net on CAMUS: Tables 2 and 3, Figures 3 and 8 of the paper.

    python -m weight_port --config=configs/camus_omnianet.py
    python launch.py --config=configs/camus_omnianet.py --workdir=runs/camus --mode=folds \\
        --config.data.root=/data/CAMUS_public

trains the five folds one after the other, each as a run of its own in runs/camus/fold_0 to fold_4,
and scores every patient by the fold that did not see it; `--mode=predict` with the same folder then
predicts by the mean of all five. One fold by itself: `--config.fold=2` and --mode=train. The
official split instead: --config.data.split.kind=official.

    :demo    the whole job on generated phantoms, a few minutes on two CPU cores
    :debug   two steps of it

Not stated in the paper, so chosen here: size 256 x 256, batch 8, no stochastic depth beyond timm's.

Published (CAMUS's test set, mean): Dice LVendo ED .945, ES .922, LVepi ED .956, ES .951; MAD 1.5,
1.6, 1.8, 1.8 mm; HD 4.8, 4.8, 5.4, 5.9 mm; correlation EF .896, EDV .980, ESV .974. Not reproduced
here yet: that takes the CAMUS data and a GPU.

Source: Messaoudi et al. 2023, Sect. 2.1.1 and 3.1.1.
"""

from ml_collections import ConfigDict

from configs import omnianet_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/camus_omnianet.py:{arg} is unknown; known: :demo, :debug")
    config = omnianet_common.get_config()

    config.challenge = ConfigDict()
    config.challenge.name = "camus"
    config.challenge.frames = "stills"  # or half_sequence: every annotated frame trains
    config.challenge.mad = "pooled"  # or masd: what the mean absolute distance is a mean of

    config.weights.file = "weights/omnianet_b0_16ch.safetensors"

    config.data.patch = (256, 256)  # (row, column) that the network sees
    config.data.split.kind = "kfold"  # or official, holdout, fixed, all; by patient
    config.data.split.folds = 5
    config.fold = 0  # the same as config.data.split.fold
    config.data.split.fold = config.get_ref("fold")

    config.optim.learning_rate = 3e-4
    config.optim.decay_per_epoch = 0.95  # down to learning_rate_end: 67 epochs

    if arg:
        demo(config)
    if arg == "debug":
        debug(config)
    return config.lock()


def demo(config: ConfigDict) -> None:
    """Phantoms, small images, random weights."""
    config.phantoms = ConfigDict({"n": 30, "seed": 0, "n_frames": 4})  # written to data.root
    config.data.root = "runs/camus_phantoms"
    config.data.patch = (128, 128)
    config.weights.file = ""
    config.model.drop_path_rate = 0.0
    config.optim.learning_rate = 2e-3
    config.optim.learning_rate_end = 3e-4
    config.optim.decay_per_epoch = 0.75  # 7 epochs of 12 steps
    config.train.log_every_steps = 4
    config.train.validate_every_epochs = 3


def debug(config: ConfigDict) -> None:
    """Two steps on five small phantoms."""
    config.phantoms.n = 5
    config.phantoms.pixel_mm = 2.0
    config.phantoms.n_frames = 2
    config.data.root = "runs/camus_phantoms_debug"
    config.data.patch = (32, 32)
    config.train.epochs = 1
    config.train.log_every_steps = 1
