"""Omnia-Net on CHAOS: Table 4, Figures 9 and 10 of the paper. One network for the five tasks.

    python -m weight_port --config=configs/chaos_omnianet.py
    python launch.py --config=configs/chaos_omnianet.py --workdir=runs/chaos \\
        --config.data.root=/data/CHAOS            # with Train_Sets in it
    python launch.py --config=configs/chaos_omnianet.py --workdir=runs/chaos --mode=predict \\
        --input=/data/CHAOS/Test_Sets             # submission/Task1 to Task5, and NIfTI

    :demo    the whole job on generated phantoms, B0 and 64 x 64; minutes on two CPU cores
    :debug   two steps of it

Where 8 slices of 512 x 512 do not fit at once, config.train.accumulate=8 takes them one after the
other, in 1.5 GiB of temporaries (float32, CPU; 4.1 GiB in all). A batch norm then sees
one slice at a time, two with accumulate=4, see `step.make_train_step`.

Published (CHAOS test sets, mean score of a task): 73.62, 82.98, 72.88, 61.80, 69.32 for tasks 1 to
5, on average 72.12. Not reproduced here yet: that takes the CHAOS data and a GPU.

Source: Messaoudi et al. 2023, Sect. 3.1.2.
"""

from ml_collections import ConfigDict

from configs import omnianet_common


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `arg` is "", "demo" or "debug"."""
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"configs/chaos_omnianet.py:{arg} is unknown; known: :demo, :debug")
    config = omnianet_common.get_config()

    config.challenge = ConfigDict()
    config.challenge.name = "chaos"
    config.challenge.t1dual = "InPhase"  # or OutPhase: the T1DUAL result; both phases train
    config.challenge.statistics = "slice"  # z-scores of each slice, or of the whole volume
    config.challenge.keep_largest = False  # True: of each predicted organ the largest piece alone
    config.challenge.formats = (
        "png",
    )  # of --mode=predict, beside NIfTI: png, seg (needs highdicom)
    config.challenge.kind = "auto"  # CT, T1DUAL or T2SPIR: of series and volumes outside the layout
    config.challenge.aggregate = "clean"
    config.challenge.deidentify = False  # True: seg without what identifies the patient

    config.model.encoder = "efficientnet_b4"
    config.weights.source = "tf_efficientnet_b4.ns_jft_in1k"
    config.weights.file = "weights/omnianet_b4_16ch.safetensors"

    config.data.patch = (512, 512)

    # In the paper's list, each with probability 0.5; the ranges in common.py are ours.
    config.augment.probability = 0.5

    config.optim.learning_rate = 1e-3  # down to learning_rate_end: 90 epochs

    config.inference.window_batch = 8

    if arg:
        demo(config)
    if arg == "debug":
        debug(config)
    return config.lock()


def demo(config: ConfigDict) -> None:
    """Eleven phantoms of each modality, random weights, small encoder and slices, mild changes."""
    config.phantoms = ConfigDict({"n": 11, "seed": 0, "size": 128})  # written to data.root
    config.data.root = "runs/chaos_phantoms"
    config.data.patch = (64, 64)
    config.data.split.kind = "fixed"  # two patients of each modality
    config.data.split.validation = _held_out(10, 11)
    config.model.encoder = "efficientnet_b0"
    config.model.drop_path_rate = 0.0
    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    config.weights.file = ""
    config.optim.learning_rate = 3e-3
    config.optim.decay_per_epoch = 0.82
    config.augment.probability = 0.1
    config.train.epochs = 13
    config.train.validate_every_epochs = 3
    config.train.log_every_steps = 10


def debug(config: ConfigDict) -> None:
    """Two steps on two small phantoms of each modality."""
    config.phantoms.n, config.phantoms.size = 2, 48
    config.data.root = "runs/chaos_phantoms_debug"
    config.data.patch = (32, 32)
    config.data.split.validation = _held_out(2)
    config.train.batch_size = 26  # half of the slices
    config.train.epochs = 1
    config.train.log_every_steps = 1


def _held_out(*numbers: int) -> tuple[str, ...]:
    """The cases of some phantoms."""
    kinds = ("T1DUAL_InPhase", "T1DUAL_OutPhase", "T2SPIR")
    return tuple(
        case for n in numbers for case in (f"CT_{n}", *(f"MR_{n}_{kind}" for kind in kinds))
    )
