"""timm networks with random weights and statistics, made once per session."""

import functools

import numpy as np
import pytest

from weight_port import source


@functools.cache
def random_timm(name):
    """A timm network in eval mode whose BatchNorm has random weights and statistics."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    generator = np.random.default_rng(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                n = module.num_features
                module.weight.copy_(torch.tensor(generator.uniform(0.5, 1.5, n)))
                module.bias.copy_(torch.tensor(generator.normal(0, 0.2, n)))
                module.running_mean.copy_(torch.tensor(generator.normal(0, 0.2, n)))
                # Not above the activations' own variance by far, nor below: 30 random blocks
                # would fade out, or amplify rounding beyond what the test allows.
                module.running_var.copy_(torch.tensor(generator.uniform(0.5, 1.5, n)))
    return model


@pytest.fixture
def timm_model():
    """name -> timm network."""
    return random_timm


@pytest.fixture
def make_source():
    """name -> `Source` of the random network of that name."""

    def make(name):
        arrays = {k: v.numpy() for k, v in random_timm(name).state_dict().items()}
        origin = {"source": "file", "id": name, "url": None, "file": "x.safetensors"}
        origin |= {"sha256": "0" * 64, "licence": "unknown"}
        return source.Source(source.parse_name(name), arrays, origin)

    return make
