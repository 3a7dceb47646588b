"""timm networks with random weights and statistics, made once per session; porting them."""

import functools

import numpy as np
import pytest

from weight_port import source
from weight_port.__main__ import main

CONFIG = """
from ml_collections import ConfigDict


def get_config(arg=""):
    return ConfigDict({
        "data": {"patch": (64, 64, 64)},
        "model": {
            "name": "dxnet", "encoder": "efficientnet_b0", "norm": "instance",
            "padding": "same", "encoder_eps": 1e-3,
        },
        "weights": {
            "source": "tf_efficientnet_b0.ns_jft_in1k", "inflate": arg or "repeat",
            "stem": "tile", "file": "FOLDER/ported.safetensors", "skip": (), "ignore": (),
        },
    })
"""


@functools.cache
def random_timm(name, **options):
    """A timm network in eval mode with random norms, whose statistics fit its activations.

    Statistics drawn without looking at the activations would let those of the larger networks grow
    by orders of magnitude, and rounding errors with them: gates that saturate amplify both.
    """
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    generator = np.random.default_rng(1)

    def draw(low, high, n):
        return torch.tensor(generator.uniform(low, high, n), dtype=torch.float32)

    def settle(norm, inputs):
        x, n = inputs[0], inputs[0].shape[1]
        norm.weight.copy_(draw(0.5, 1.5, n))
        norm.bias.copy_(draw(-0.3, 0.3, n))
        if isinstance(norm, torch.nn.BatchNorm2d):
            # Of all channels together, as a channel may be next to constant on one image.
            variance = x.var((0, 2, 3)).mean()
            norm.running_mean.copy_(x.mean((0, 2, 3)) + variance.sqrt() * draw(-0.3, 0.3, n))
            norm.running_var.copy_(variance * draw(0.5, 1.5, n))

    norms = (torch.nn.BatchNorm2d, torch.nn.GroupNorm)
    hooks = [m.register_forward_pre_hook(settle) for m in model.modules() if isinstance(m, norms)]
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if ".se." in path or "routing_fn" in path:
                parameter.mul_(0.3)  # gates that neither saturate nor depend on the image alone
            if path.endswith("gamma"):
                parameter.copy_(draw(0.1, 0.5, len(parameter)))  # timm's let a branch vanish
            if path.endswith("bias") and parameter.ndim == 1:
                parameter.copy_(draw(-0.3, 0.3, len(parameter)))  # timm's are zero: any would do
        model(torch.tensor(generator.normal(size=(1, 3, 128, 128)), dtype=torch.float32))
    for hook in hooks:
        hook.remove()
    return model


@pytest.fixture
def timm_model():
    """name -> timm network."""
    return lambda name, **options: random_timm(name, **options)  # `short.cut` replaces it


@pytest.fixture
def make_source():
    """name -> `Source` of the random network of that name."""

    def make(name):
        arrays = {k: v.numpy() for k, v in random_timm(name).state_dict().items()}
        origin = {"source": "file", "id": name, "url": None, "file": "x.safetensors"}
        origin |= {"sha256": "0" * 64, "licence": "unknown"}
        return source.Source(source.parse_name(name), arrays, origin)

    return make


@pytest.fixture
def port():
    """The command without the certificate, which runs networks and has tests of its own."""
    return lambda command: main([*command, "--no-certificate"])


@pytest.fixture
def config(tmp_path):
    """The file of a config for DX-Net, whose weights go to `ported.safetensors` beside it."""
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return path


@pytest.fixture
def checkpoint(tmp_path, timm_model):
    """The file of a B0, as timm has it."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file(timm_model("tf_efficientnet_b0").state_dict(), path)
    return path
