"""Common part of all experiments: every field, with its default and its meaning."""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "") -> ConfigDict:
    """The fields that do not depend on the experiment; `arg` is not used."""
    del arg
    config = ConfigDict()
    config.seed = 0  # of parameters, order of the cases, crops, stochastic depth
    config.data = _data()
    config.weights = _weights()
    config.augment = _augment()
    config.optim = _optim()
    config.train = _train()
    config.mesh = _mesh()
    config.inference = _inference()
    return config


def _data() -> ConfigDict:
    """The cases, what is seen of them, and how they are split."""
    data = ConfigDict()
    data.root = ""  # folder of cases
    data.cache = "runs/cache"  # decoded cases; runs share it; about 60 MB a BraTS case
    data.cache_dtype = "float32"  # or float16: half the disk
    # (z, y, x) voxels, multiples of 32, better not 32 itself; for a 2D network (y, x), to which
    # slices are resized.
    data.patch = (128, 128, 128)
    # How far a voxel of a label or modality may lie from where the case's first image has it; None:
    # a twentieth of a voxel. What is farther is refused, nothing is resampled.
    data.grid_tolerance_mm = config_dict.placeholder(float)
    # Probability that a 3D patch holds a voxel of a region, each region equally often.
    data.foreground = 0.0
    # Training cases to use: a number or a fraction of them, the first in an order by the run's
    # seed, so that fewer are among more; None: all.
    data.cases = config_dict.FieldReference(None, field_type=object)
    data.num_threads = 2  # that read patches
    data.num_processes = 2  # that prepare cases, a whole one each; 0: threads do it
    data.changed_cases = "refuse"  # or accept: go on, though cases are not what they were before
    data.split = ConfigDict()
    # Fraction of the patients set aside before the others are split as `kind` says, and scored in
    # the end in place of the validation cases, on which weights are chosen; not with fixed.
    data.split.test = 0.0
    data.split.kind = "holdout"  # or kfold, fixed, official, all; by patient
    data.split.fraction = 0.2  # holdout: of the patients
    data.split.folds = 5  # kfold
    data.split.fold = 0
    data.split.validation = config_dict.placeholder(tuple)  # fixed: case ids
    data.split.seed = 0
    return data


def _weights() -> ConfigDict:
    """Weights of the encoder, in a file that is made by `python -m weight_port --config=...`."""
    weights = ConfigDict()
    # A .safetensors file; "" starts from random parameters. A 2D one serves every network: it is
    # adapted and inflated, as the next fields say, when training starts.
    weights.file = ""
    # What a 3D file is made with, and what it is checked against.
    weights.source = ""  # timm's name of the 2D weights
    weights.inflate = "repeat"  # or mean, sqrt, center, gaussian, acs
    weights.inflate_at = ()  # other modes here and there: ("blocks_[56]_.*=center",)
    weights.stem = "tile"  # or gray, sum, reinit, released
    # Training patches on which batch norms' running statistics are measured before the first step;
    # 0 takes them from the file. `repeat` with norm=batch or frozen needs it: 16 or more.
    weights.reestimate = 0
    # "": the weights themselves. As controls, of a 2D file: "shuffled", the numbers of each filter
    # in another order; "random", drawn anew; by `seed`. They are inflated like others.
    weights.control = ""
    weights.skip = ()  # patterns of parameters that keep their random start
    weights.ignore = ()  # padding, eps, source, inflate, stem: may differ from the file
    return weights


def _augment() -> ConfigDict:
    """Changes to the patches, each made with `probability`, see data/augment.py; 0 is off."""
    augment = ConfigDict()
    augment.probability = 0.0  # the paper augments in CHAOS only
    augment.scale = 0.2  # from 1 - scale to 1 + scale
    augment.rotation_deg = 15.0  # either way, as what follows
    augment.translation = 0.1  # of the patch
    augment.shear = 0.1  # tangent
    augment.window_width = 0.2  # contrast, from 1 - width to 1 + width
    augment.window_level = 0.2  # brightness, in standard deviations of the image
    augment.noise = 0.1  # standard deviation
    augment.flip = ()  # axes that are mirrored half of the time, such as (0, 1, 2)
    return augment


def _optim() -> ConfigDict:
    """The optimiser, its schedule, and what it leaves alone."""
    optim = ConfigDict()
    optim.name = "nadam"
    optim.learning_rate = 1e-3
    optim.learning_rate_end = 1e-5
    optim.schedule = "constant_cosine"  # or exponential
    optim.constant_epochs = 40  # then a cosine to learning_rate_end at train.epochs
    optim.decay_per_epoch = 0.95  # exponential: times this, down to learning_rate_end
    optim.b1 = 0.95
    optim.b2 = 0.99
    optim.eps = 1e-8  # released code: 1e-5
    optim.schedule_decay = config_dict.placeholder(float)  # released code: 0.004
    optim.sync_period = 6  # lookahead; 0 for none
    optim.slow_step_size = 0.5
    optim.clip_norm = config_dict.placeholder(float)  # None or 0: not clipped
    optim.weight_decay = 0.0
    optim.freeze = ()  # patterns, such as "encoder/.*"
    optim.freeze_epochs = config_dict.placeholder(float)  # how long; None: always
    optim.rates = ()  # pairs (pattern, factor of the learning rate): (("encoder/.*", 0.1),)
    return optim


def _train() -> ConfigDict:
    """Loss, batches, and what happens between the steps."""
    train = ConfigDict()
    train.loss = "dice_bce"
    train.epochs = 90  # None: until an exponential schedule has come to its end
    # Steps of an epoch, for all that is counted in epochs; None: as many as show every training
    # case, or slice, once. A number makes runs on more or fewer cases equally long.
    train.steps_per_epoch = config_dict.placeholder(int)
    train.batch_size = 1  # patches per update, over all devices
    train.accumulate = 1  # micro-batches that make up one batch
    # Weights that are evaluated, predict and are exported: the best by validation, or the last.
    # With "last" validation is for the curve only, made where the next two fields ask for it.
    train.choose = "best"
    train.validate_from_dice = 0.85  # starts above this training Dice; 1: only at the end
    train.validate_every_epochs = 1
    train.early_stop_epochs = config_dict.placeholder(int)  # without a better validation
    train.skip_nonfinite = 0  # steps whose loss is not a number that may be left out
    train.log_every_steps = 50
    # None: every epoch; 0: only at the end, and where a stop is answered.
    train.checkpoint_every_steps = config_dict.placeholder(int)
    train.tensorboard = False  # True: the numbers of metrics.jsonl for TensorBoard, too
    train.keep = 2  # latest checkpoints; the best is kept besides
    # False: once all is evaluated one set of weights is kept, and nothing to go on training with.
    train.keep_state = True
    return train


def _mesh() -> ConfigDict:
    """Shares of the devices in the work."""
    mesh = ConfigDict()
    mesh.data = -1  # devices that share a batch; -1: as many as share it evenly
    mesh.depth = 1  # devices that share the depth of a volume
    return mesh


def _inference() -> ConfigDict:
    """Prediction of whole images."""
    inference = ConfigDict()
    inference.mode = "window"  # or whole: a volume in one piece, shared over mesh.depth
    inference.overlap = 0.5  # of neighbouring windows
    # True: mean over the 8 mirrored predictions; or the axes to mirror, such as (0, 1)
    inference.flips = config_dict.FieldReference(False, field_type=object)
    inference.window_batch = 1  # windows at a time on each of mesh.data
    # True: an evaluation finds of which structures only the largest component should be kept, and
    # predictions keep to it; for data sets of one's own.
    inference.keep_largest = False
    return inference
