"""What the experiments share: every field, with its default and its meaning."""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "") -> ConfigDict:
    """The fields that do not depend on the experiment; `arg` is not used."""
    del arg
    config = ConfigDict()
    config.seed = 0  # of parameters, order of the cases, crops, stochastic depth

    config.data = ConfigDict()
    config.data.root = ""  # folder of cases
    config.data.cache = "runs/cache"  # decoded cases; runs share it; about 60 MB a BraTS case
    config.data.cache_dtype = "float32"  # or float16: half the disk
    # (z, y, x) voxels, multiples of 32, better not 32 itself; for a 2D network (y, x), to which
    # slices are resized.
    config.data.patch = (128, 128, 128)
    config.data.foreground = 0.0  # probability that a 3D patch is centred on a labelled voxel
    config.data.num_threads = 2  # that read patches
    config.data.num_processes = 2  # that prepare cases, a whole one each; 0: threads do it
    config.data.split = ConfigDict()
    config.data.split.kind = "holdout"  # or kfold, fixed, official, all; by patient
    config.data.split.fraction = 0.2  # holdout: of the patients
    config.data.split.folds = 5  # kfold
    config.data.split.fold = 0
    config.data.split.validation = config_dict.placeholder(tuple)  # fixed: case ids
    config.data.split.seed = 0

    config.weights = ConfigDict()  # of the encoder; made by `python -m weight_port --config=...`
    config.weights.file = ""  # a .safetensors file; "" starts from random parameters
    # The next four are what the file is made with, and what it is checked against.
    config.weights.source = ""  # timm's name of the 2D weights
    config.weights.inflate = "repeat"  # or mean, sqrt, center, gaussian, acs
    config.weights.inflate_at = ()  # other modes here and there: ("blocks_[56]_.*=center",)
    config.weights.stem = "tile"  # or gray, sum, reinit, released
    # Training patches on which batch norms' running statistics are measured before the first step;
    # 0 takes them from the file. `repeat` with norm=batch or frozen needs it: 16 or more.
    config.weights.reestimate = 0
    config.weights.skip = ()  # patterns of parameters that keep their random start
    config.weights.ignore = ()  # padding, eps, source, inflate, stem: may differ from the file

    # Each change is made with this probability, see data/augment.py; 0 is off.
    config.augment = ConfigDict()
    config.augment.probability = 0.0  # the paper augments in CHAOS only
    config.augment.scale = 0.2  # from 1 - scale to 1 + scale
    config.augment.rotation_deg = 15.0  # either way, as what follows
    config.augment.translation = 0.1  # of the patch
    config.augment.shear = 0.1  # tangent
    config.augment.window_width = 0.2  # contrast, from 1 - width to 1 + width
    config.augment.window_level = 0.2  # brightness, in standard deviations of the image
    config.augment.noise = 0.1  # standard deviation
    config.augment.flip = ()  # axes that are mirrored half of the time, such as (0, 1, 2)

    config.optim = ConfigDict()
    config.optim.name = "nadam"
    config.optim.learning_rate = 1e-3
    config.optim.learning_rate_end = 1e-5
    config.optim.schedule = "constant_cosine"  # or exponential
    config.optim.constant_epochs = 40  # then a cosine to learning_rate_end at train.epochs
    config.optim.decay_per_epoch = 0.95  # exponential: times this, down to learning_rate_end
    config.optim.b1 = 0.95
    config.optim.b2 = 0.99
    config.optim.eps = 1e-8  # released code: 1e-5
    config.optim.schedule_decay = config_dict.placeholder(float)  # released code: 0.004
    config.optim.sync_period = 6  # lookahead; 0 for none
    config.optim.slow_step_size = 0.5
    config.optim.clip_norm = config_dict.placeholder(float)
    config.optim.weight_decay = 0.0
    config.optim.freeze = ()  # patterns, such as "encoder/.*"
    config.optim.freeze_epochs = config_dict.placeholder(float)  # how long; None: always
    config.optim.rates = ()  # pairs (pattern, factor of the learning rate): (("encoder/.*", 0.1),)

    config.train = ConfigDict()
    config.train.loss = "dice_bce"
    config.train.epochs = 90  # None: until an exponential schedule has come to its end
    config.train.batch_size = 1  # patches per update, over all devices
    config.train.accumulate = 1  # micro-batches that make up one batch
    config.train.validate_from_dice = 0.85  # validation starts above this training Dice
    config.train.validate_every_epochs = 1
    config.train.early_stop_epochs = config_dict.placeholder(int)  # without a better validation
    config.train.skip_nonfinite = 0  # steps whose loss is not a number that may be left out
    config.train.log_every_steps = 50
    config.train.checkpoint_every_steps = config_dict.placeholder(int)  # None: every epoch
    config.train.keep = 2  # latest checkpoints; the best is kept besides

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share a batch; -1: as many as share it evenly
    config.mesh.depth = 1  # devices that share the depth of a volume

    config.inference = ConfigDict()
    config.inference.mode = "window"  # or whole: a volume in one piece, shared over mesh.depth
    config.inference.overlap = 0.5  # of neighbouring windows
    config.inference.flips = False  # True: mean over the 8 mirrored predictions
    config.inference.window_batch = 1  # windows at a time on each of mesh.data
    return config
