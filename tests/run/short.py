"""`configs/brats_dxnet.py:debug` on two convolutions, for launch.py in a new process."""

import atexit

from configs import brats_dxnet
from tests import toy

standing_in = toy.standing_in_for("dxnet")
standing_in.__enter__()
atexit.register(standing_in.__exit__, None, None, None)


def get_config(arg=""):
    return brats_dxnet.get_config("debug")
