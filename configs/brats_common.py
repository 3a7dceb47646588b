"""Common part of the experiments on BraTS: data, challenge, and how demos run on phantoms."""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """All but the network and its weights; `arg` is not used."""
    del arg
    config = common.get_config()

    config.challenge = ConfigDict()
    config.challenge.name = "brats"
    config.challenge.layout = "auto"  # 2020, 2021, 2023, msd or plain; auto: by the file names
    config.challenge.convention = "auto"  # of labels: 2015, 2021, 2023, 2024 or msd
    config.challenge.modalities = config_dict.placeholder(tuple)  # None: flair, t1, t1ce, t2
    config.challenge.et_min_mm3 = 200.0  # a smaller enhancing tumour becomes core
    config.challenge.aggregate = "clean"  # or synapse2022: the platform's own quartiles

    config.model = ConfigDict()
    config.model.name = ""
    config.model.variant = "paper"  # or released
    config.model.encoder = "efficientnet_b0"
    config.model.norm = config_dict.placeholder(str)  # None: as the variant says; likewise below
    config.model.padding = config_dict.placeholder(str)
    config.model.encoder_eps = config_dict.placeholder(float)
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.dtype = "float32"  # bfloat16 on GPU and TPU
    config.model.ops = "auto"  # convolutions: auto, lax, fast or unfolded

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"
    return config


def phantoms(config: ConfigDict, patch: tuple[int, int, int], **recipe) -> None:
    """Phantoms instead of patients, and random weights; `recipe` as `brats.phantom` takes."""
    config.challenge = ConfigDict({"name": "phantom", "et_min_mm3": 200.0, "aggregate": "clean"})
    config.phantoms = ConfigDict({"seed": 0, **recipe})  # written to data.root
    config.data.root = "runs/phantoms"
    config.data.patch = patch
    config.data.foreground = 0.5
    config.weights.file = ""
    config.model.drop_path_rate = 0.0
    config.train.validate_from_dice = 0.5
    config.inference.overlap = 0.25


def debug(config: ConfigDict, patch: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    """After `phantoms`: two steps on four small ones."""
    config.phantoms.n = 4
    config.phantoms.shape = shape
    config.data.root += "_debug"
    config.data.patch = patch
    config.data.split.fraction = 0.5
    config.train.epochs = 1
    config.train.log_every_steps = 1
