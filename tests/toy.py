"""A network, batches and cases small enough to train in a test."""

import contextlib
import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import losses, models
from crossdim_jax.models import layers
from crossdim_jax.report import figures
from crossdim_jax.runtime import sharding
from crossdim_jax.training import initialise, optim
from crossdim_jax.training import step as train
from crossdim_jax.training.settings import TrainSettings

REGIONS = ("WT", "TC")


class ToyNet(nn.Module):
    """Two convolutions; with `norm` a batch norm between them, with `rate` dropout."""

    norm: bool = False
    rate: float = 0.0
    classes: int = len(REGIONS)
    dtype: jnp.dtype = jnp.float32
    ops: str = "lax"

    def check_size(self, spatial):
        """Any size will do."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        nd = x.ndim - 2
        # No bias before the norm: its gradient is pure rounding, which Nadam would blow up.
        x = nn.Conv(4, (3,) * nd, use_bias=not self.norm, dtype=self.dtype, name="encoder")(x)
        if self.norm:
            x = layers.Norm("batch", dtype=self.dtype, name="norm")(x, train=train)
        x = nn.silu(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Conv(self.classes, (3,) * nd, dtype=self.dtype, name="head")(x)


@contextlib.contextmanager
def registered(network=ToyNet):
    """The network `toy` exists meanwhile: `config.model.name = "toy"`."""

    def build(out_channels, **attributes):
        return network(classes=out_channels, **attributes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "toy", build)
        yield


@contextlib.contextmanager
def standing_in_for(name):
    """The network of that name is two convolutions meanwhile, whatever its attributes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, name, lambda out_channels, **_: ToyNet(classes=out_channels))
        yield


@contextlib.contextmanager
def sketched():
    """Figures are made meanwhile, but not drawn: that takes most of a report's time."""

    def save(_, path):
        for target in (path, path.with_suffix(".pdf")):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        yield


def read_metrics(workdir):
    """The lines of a run's metrics file; empty if there is none."""
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_arrays(seed: int, batch: int, shape=(8, 6, 4)):
    """A batch whose regions can be seen in its image."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(batch, *shape, 1)).astype(np.float32)
    target = np.concatenate([image > 0.3, image > 0.9], -1).astype(np.uint8)
    return image, target


class Batches:
    """The contract of the data pipeline: batches by position, `get_state`, `set_state`."""

    def __init__(self, batch: int = 4, spoil_at: int | tuple[int, ...] = (), on_batch=None):
        self.batch, self.on_batch = batch, on_batch
        self.spoil_at = (spoil_at,) if isinstance(spoil_at, int) else spoil_at
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.on_batch is not None:
            self.on_batch(self.position)
        image, target = make_arrays(self.position, self.batch)
        if self.position in self.spoil_at:
            image[0, 0, 0, 0, 0] = np.nan
        ids = np.array([f"case_{self.position}_{i}" for i in range(self.batch)])
        self.position += 1
        return {"image": image, "target": target, "id": ids}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@dataclasses.dataclass
class Case:
    id: str
    image: np.ndarray
    label: np.ndarray
    kind: str = ""


def make_cases(n: int = 2):
    image, target = make_arrays(1000, n)
    return [Case(f"val_{i}", image[i], target[i].sum(-1)) for i in range(n)]


def encode(label, kind=""):
    return np.stack([label > 0, label > 1], -1), np.ones(2, np.float32)


def make_predict(model):
    def predict(variables, image):
        logits = model.apply(variables, jnp.asarray(image)[None], train=False)
        return np.asarray(1 / (1 + jnp.exp(-logits[0])))

    return predict


def settings(workdir, **options):
    """Of a training of three epochs, two steps each."""
    lengths = {"total_steps": 6, "steps_per_epoch": 2, "progress": False}
    return TrainSettings(workdir=workdir, regions=REGIONS, **(lengths | options))


def make_run(model=None, *, mesh=None, accumulate=1, seed=0, skip_nonfinite=False, **optimizer):
    """`(state, jitted step, mesh)`."""
    model = model or ToyNet()
    mesh = mesh or sharding.make_mesh(1)
    optimizer = optim.make(**({"learning_rate": 1e-2} | optimizer))
    state = initialise.init_state(model, optimizer, (1, 8, 6, 4, 1), mesh, seed=seed, say=None)
    step = train.make_train_step(
        model,
        optimizer,
        losses.dice_bce,
        seed=seed,
        accumulate=accumulate,
        skip_nonfinite=skip_nonfinite,
    )
    return state, train.jit_step(step, mesh), mesh
