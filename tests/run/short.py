"""`configs/brats_dxnet.py:debug` on two convolutions, for launch.py in a new process."""

import atexit

from configs import brats_dxnet
from crossdim_jax.report import figures
from tests import toy

standing_in = toy.standing_in_for("dxnet")
standing_in.__enter__()
atexit.register(standing_in.__exit__, None, None, None)

# As in `tests/conftest.py`.
figures.DPI, figures.STYLE["pdf.use14corefonts"] = 50, True


def get_config(arg=""):
    config = brats_dxnet.get_config("debug")
    config.data.num_processes = 0  # each would import everything anew
    return config
