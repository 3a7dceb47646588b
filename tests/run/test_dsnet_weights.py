"""What DS-Net starts from: a 2D weight file as it is, or the encoder of a trained run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import brats_dsnet
from crossdim_jax import models
from crossdim_jax.errors import ConfigError, CrossdimError, WeightsError
from crossdim_jax.run import experiment, initial_state, weights_of_run
from crossdim_jax.storage import run_folder
from crossdim_jax.training import checkpoint
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights.merge import encoder_path, merge
from crossdim_jax.weights.paths import flatten
from tests.weight_port import short
from tests.weight_record import CLAIMS
from weight_port import plan
from weight_port.__main__ import main

# Of the library that reads config files.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)

PATTERN = "net2d/encoder/.*"


@pytest.fixture(scope="module", autouse=True)
def _short():
    """B0 of a block a stage."""
    with short.cut():
        yield


def config(**fields):
    result = brats_dsnet.get_config()
    with result.unlocked():
        result.data.patch = (97, 32, 32)
        result.model.ops = "lax"
        result.mesh.data = 1
        result.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return result


@pytest.fixture(scope="module")
def ported(_short, tmp_path_factory):
    """The file that the config asks for, of random weights; made by the command itself."""
    path = tmp_path_factory.mktemp("weights") / "b0_2d.safetensors"
    arguments = ["--config=configs/brats_dsnet.py", "--random", f"--out={path}"]
    assert main([*arguments, "--no-certificate"]) == 0
    return path


def test_the_config_ports_2d_weights_as_they_are():
    todo = plan.of_config("configs/brats_dsnet.py", ())
    assert (todo.recipe.ndim, todo.recipe.inflate, todo.recipe.in_channels) == (2, None, 3)
    assert (todo.recipe.norm, todo.name) == ("batch", CLAIMS["source"])
    assert todo.out.name == "dsnet_b0_2d.safetensors"


def shapes(job):
    """Of the network's variables, which stay abstract: only what is put in becomes an array."""
    image = jax.ShapeDtypeStruct(job.image_shape, jnp.float32)
    return jax.eval_shape(job.model.init, jax.random.key(0), image)


def test_a_2d_file_fills_the_encoder_inside_and_nothing_else(ported, tmp_path):
    job = experiment.build(config(weights__file=str(ported)), tmp_path)
    weights = initial_state.load_weights(job)
    merged, report = merge(shapes(job), weights, encoder=encoder_path(job.model))
    found = flatten(merged)
    inside = {p for p in found if p.split("/", 1)[1].startswith("net2d/encoder/")}
    held = {p: v for p, v in weights.arrays.items() if not p.startswith("head/")}
    assert set(report.filled) == inside
    assert {p.replace("net2d/encoder", "encoder") for p in inside} == held.keys()
    for path in inside:
        np.testing.assert_array_equal(found[path], held[path.replace("net2d/encoder", "encoder")])
    assert held["params/encoder/conv_stem/kernel"].shape == (3, 3, 3, 32)  # untouched
    assert all(isinstance(found[path], jax.ShapeDtypeStruct) for path in found.keys() - inside)


def write_run(folder, value=1.0, **attributes):
    """The folder of an Omnia-Net that was trained, as far as that matters: config, checkpoint."""
    settings = {"name": "omnianet", "variant": "paper", "ops": "lax"} | attributes
    model = models.build(**settings)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(5)

    def drawn(tree):
        # None below 0: some are variances.
        return jax.tree.map(lambda v: (value * rng.uniform(size=v.shape)).astype("f4"), tree)

    slow, fast = drawn(tree["params"]), drawn(tree["params"])  # the fast ones are not to be taken
    state = TrainState(
        np.int32(3),
        optax.LookaheadParams(fast, slow),
        drawn(tree["batch_stats"]),
        {"count": np.int32(3)},
    )
    with checkpoint.Checkpointer(folder) as checkpoints:
        checkpoints.save(state, {"step": 3, "config": {}})
    (folder / run_folder.CONFIG).write_text(json.dumps({"model": settings}))
    return flatten(slow["encoder"])


def test_a_runs_slow_encoder_is_taken_with_its_provenance(tmp_path):
    slow = write_run(tmp_path / "omnia", stem_width=0)
    job = experiment.build(config(weights__file=str(tmp_path / "omnia")), tmp_path)
    weights = initial_state.load_weights(job)
    for path, value in slow.items():
        np.testing.assert_array_equal(weights.arrays[f"params/encoder/{path}"], value)
    record = weights.metadata
    assert (record["source"], record["run"], record["step"]) == ("run", "omnia", 3)
    assert (record["ndim"], record["in_channels"], record["norm"]) == (2, 3, "batch")


def test_a_runs_stem_for_other_channels_is_refused_or_left_out(tmp_path):
    """An Omnia-Net with its full-resolution block has a stem for 16 channels."""
    write_run(tmp_path / "omnia")
    fields = {"weights__file": str(tmp_path / "omnia")}
    with pytest.raises(WeightsError, match="in_channels: found 16, expected 3.*stem_width=0"):
        initial_state.load_weights(experiment.build(config(**fields), tmp_path))
    fields |= {"weights__ignore": ("in_channels",), "weights__skip": (".*/conv_stem/kernel",)}
    job = experiment.build(config(**fields), tmp_path)
    _, report = merge(
        shapes(job),
        initial_state.load_weights(job),
        skip=job.config.weights.skip,
        encoder=encoder_path(job.model),
    )
    assert report.fresh == ("params/net2d/encoder/conv_stem/kernel",)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path}.*should be that of a run"):
        initial_state.load_weights(
            experiment.build(config(weights__file=str(tmp_path)), tmp_path / "new")
        )


@pytest.mark.parametrize(
    "name, content",
    [
        (run_folder.CONFIG, "{"),
        (run_folder.CONFIG, "[1]"),
        (run_folder.CONFIG, '{"model": 3}'),
        (run_folder.CONFIG, '{"model": {"name": "nosuch"}}'),
        (run_folder.CONFIG, '{"model": {"name": ["omnianet"]}}'),
        (run_folder.CONFIG, '{"model": ' * 100_000),
        (run_folder.CONFIG, b"\xff\xfe"),
    ],
)
def test_a_damaged_config_of_a_run_is_named(name, content, tmp_path):
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{tmp_path}.*its config.json cannot be used"):
        weights_of_run.load(tmp_path)


def test_a_run_that_diverged_or_lost_its_records_is_no_start(tmp_path):
    write_run(tmp_path / "omnia", stem_width=0)
    start_of = tmp_path / "omnia" / run_folder.WEIGHTS
    older = {"id": "x", "run": "/home/somebody/runs/b", "started_from": {"run": "/data/a"}}
    start_of.write_text(json.dumps(older))
    record = weights_of_run.load(tmp_path / "omnia").metadata
    assert record["started_from"] == {"id": "x", "run": "b", "started_from": {"run": "a"}}
    for damaged in ("{", "3", '{"id": 3}'):
        start_of.write_text(damaged)
        with pytest.raises(CrossdimError, match=f"{start_of}: "):
            weights_of_run.load(tmp_path / "omnia")
    start_of.unlink()
    config_of = tmp_path / "omnia" / run_folder.CONFIG
    config_of.write_text(json.dumps({"model": {"name": "dsnet"}}))
    with pytest.raises(WeightsError, match="holds no encoder efficientnet_b0"):
        weights_of_run.load(tmp_path / "omnia")
    write_run(tmp_path / "nan", stem_width=0, value=np.nan)
    with pytest.raises(WeightsError, match="nan: .* tensors cannot be weights"):
        weights_of_run.load(tmp_path / "nan")


def test_depths_that_do_not_end_at_three_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.patch=\(64, 64, 64\).*97 to 144"):
        experiment.build(config(data__patch=(64, 64, 64)), tmp_path)


def test_freezing_is_given_in_epochs(tmp_path):
    frozen = config(optim__freeze=(PATTERN,), optim__freeze_epochs=0.5)
    made = experiment.build(frozen, tmp_path).optimizer(8)
    tree = {"net2d": {"encoder": {"kernel": np.ones(2, np.float32)}}}
    parameters, moves = made.wrap(tree), []
    state = made.init(parameters)
    for _ in range(6):
        after, state = made.update(tree, state, parameters)
        kernels = (p.fast["net2d"]["encoder"]["kernel"] for p in (parameters, after))
        moves.append(bool(np.not_equal(*kernels).any()))
    assert moves == [False] * 4 + [True] * 2
