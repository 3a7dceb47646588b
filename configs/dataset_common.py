"""Common part of the experiments on one's own data set: the data, and how their demos run."""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """All but the network and its weights; `arg` is not used."""
    del arg
    config = common.get_config()
    # Fields that say "auto" follow from the data: --mode=plan shows how. Each can be set by hand.
    auto(config.data, "patch")
    config.data.foreground = 0.33
    config.data.split.kind = "official"  # splits_final.json, else nnU-Net's five folds
    config.fold = 0  # the same as config.data.split.fold
    config.data.split.fold = config.get_ref("fold")

    config.challenge = ConfigDict()
    config.challenge.name = "dataset"
    config.challenge.root = config.data.get_ref("root")
    config.challenge.file = "dataset.json"  # or that of a datalist in the data root
    auto(config.challenge, "spacing_mm")  # (z, y, x); None: not resampled
    # A scheme for each channel: ct, zscore, noNorm, rescale_to_0_1, rgb_to_0_1; None: by its name.
    auto(config.challenge, "normalisation")
    # Of the foreground, for ct: {"0": {"mean": ..., "sd": ..., "percentile_00_5": ..., ...}}
    auto(config.challenge, "intensities")
    config.challenge.tolerance_mm = 2.0  # of the normalised surface distance
    config.challenge.sides = "auto"  # or none: names of labels forbid no mirroring
    config.challenge.patient = ""  # pattern, such as (sub-[0-9]+)_.*; "": BIDS names
    config.challenge.outside_root = False  # True: the JSON may list files elsewhere
    config.challenge.analyze_axes = ""  # how those of Analyze files run, such as LAS; "": refused

    auto(config.train, "loss")  # dice_ce where labels are disjoint, dice_bce for regions
    for field in ("batch_size", "epochs", "validate_every_epochs", "checkpoint_every_steps"):
        auto(config.train, field)
    auto(config.optim, "constant_epochs")
    config.train.validate_from_dice = 0.0

    config.plan = ConfigDict()  # what a training may take
    config.plan.memory_gib = 8.0  # of a device
    config.plan.steps = config_dict.placeholder(int)  # None: 25,000, or what the minutes hold
    config.plan.minutes = config_dict.placeholder(float)  # of all steps; needs the speed
    # Of patches, as --mode=plan --budget_gib=GIB measures it on a device.
    config.plan.voxels_per_second = config_dict.placeholder(float)
    return config


def auto(section: ConfigDict, field: str) -> None:
    """Lets a field say "auto", and anything else."""
    if field in section:  # it would keep its type
        del section[field]
    section[field] = config_dict.FieldReference("auto", field_type=object)


def phantoms(config: ConfigDict, patch: tuple[int, ...], **recipe) -> None:
    """Phantoms instead of a data set, and random weights; `recipe` as `dataset.phantom` takes."""
    config.challenge.name = "dataset_phantom"
    config.phantoms = ConfigDict({"seed": 0, **recipe})  # written to data.root
    config.data.root = "runs/dataset_phantoms"  # made when training starts: nothing to plan from
    config.data.patch = patch
    for field in ("spacing_mm", "normalisation", "intensities"):
        config.challenge[field] = None
    config.train.loss = "dice_ce"
    config.train.batch_size = 2
    config.train.checkpoint_every_steps = None
    config.data.split.kind = "holdout"
    config.weights.file = ""
    config.model.drop_path_rate = 0.0
    config.inference.overlap = 0.25


def debug(config: ConfigDict, shape: tuple[int, int, int]) -> None:
    """After `phantoms`: two steps on four small ones."""
    config.phantoms.n = 4
    config.phantoms.shape = shape
    config.data.root += "_debug"
    config.data.split.fraction = 0.5
    config.train.batch_size = 1
    config.train.epochs = 1
    config.train.log_every_steps = 1
