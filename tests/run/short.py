"""`configs/brats_dxnet.py:debug` on an encoder of a few blocks, for launch.py in a new process."""

import atexit

from configs import brats_dxnet
from tests.weight_port import tiny

registered = tiny.registered()
registered.__enter__()
atexit.register(registered.__exit__, None, None, None)


def get_config(arg=""):
    config = brats_dxnet.get_config("debug")
    with config.unlocked():
        config.model.encoder = "efficientnet_tiny"
        config.model.widths = (8,) * 5
    return config
