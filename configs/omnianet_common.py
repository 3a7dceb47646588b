"""Common part of the experiments with Omnia-Net: the network, and how it is trained."""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """All but the challenge and its data; `arg` is not used."""
    del arg
    config = common.get_config()

    config.model = ConfigDict()
    config.model.name = "omnianet"
    config.model.variant = "paper"  # or released
    config.model.encoder = "efficientnet_b0"
    config.model.norm = "batch"  # or instance, group, frozen
    config.model.padding = config_dict.placeholder(str)  # None: as the variant says; likewise below
    config.model.encoder_eps = config_dict.placeholder(float)
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.stem_width = 16  # of the full-resolution block; 0: none
    config.model.dtype = "float32"  # bfloat16 on GPU and TPU
    config.model.ops = "auto"  # convolutions: auto, lax, fast or unfolded

    config.weights.source = "tf_efficientnet_b0.ns_jft_in1k"

    config.optim.learning_rate_end = 1e-5  # here training ends
    config.optim.schedule = "exponential"
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.sync_period = 0  # no lookahead

    config.train.loss = "dice_ce"
    config.train.epochs = config_dict.placeholder(int)  # None: until learning_rate_end
    config.train.batch_size = 8
    config.train.validate_from_dice = 0.0  # where slices lack organs, training Dice is a poor guide
    return config
