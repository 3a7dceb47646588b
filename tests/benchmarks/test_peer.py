"""The benchmark compares like with like: the PyTorch peer is our network, the counts are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops, inputs, ours, timing
from crossdim_jax.weights.paths import unflatten
from tests.models import b0

SIZE = 32
SHAPE = (1, SIZE, SIZE, SIZE, inputs.MODALITIES)


@pytest.fixture
def weights(b0_length):
    """Those of both sides, for a network of that length."""
    return ours.weights.__wrapped__()


def our_values(weights):
    """Logits, loss and gradients."""
    net = ours.model("lax")
    tree = jax.tree.map(jnp.asarray, unflatten(weights))
    function = jax.value_and_grad(functools.partial(ours.mean_loss, net), has_aux=True)
    (loss, logits), gradients = jax.jit(function)(tree, *inputs.sample(SIZE))
    found = {"loss": np.asarray(loss), "logits": np.asarray(logits)}
    return found | ours.flat_params(gradients, "gradient")


@b0.SHORT_AND_WHOLE
def test_peer_is_our_network_in_value_and_gradient(weights):
    """Both of its norms, at a size where the deepest ones see a single voxel."""
    torch = pytest.importorskip("torch", reason="the peer is written in PyTorch (extra port)")
    from benchmarks import peer, theirs

    expected, threads = our_values(weights), torch.get_num_threads()
    torch.set_num_threads(1)  # its threads spin, which costs all tests that run beside this one
    try:
        for norm in peer.NORMS:
            made = theirs.Peer(SIZE, theirs.Variant(norm=norm), weights)
            found = made.loss_and_gradient().arrays() | made.forward().arrays()
            error, tensor = timing.compare(expected, found, "float32")
            assert error < 1e-4, (norm, tensor)
    finally:
        torch.set_num_threads(threads)


def test_peer_has_as_many_parameters():
    pytest.importorskip("torch", reason="the peer is written in PyTorch (extra port)")
    from benchmarks import peer

    assert sum(p.numel() for p in peer.DXNet().parameters()) == 12_542_831


def test_a_small_difference_is_found_in_any_tensor():
    rng = np.random.default_rng(0)
    one = {f"gradient:{i}": rng.normal(size=50).astype(np.float32) for i in range(3)}
    assert timing.compare(one, one, "float32")[0] == 0
    other = one | {"gradient:1": one["gradient:1"] * np.float32(1.001)}
    with pytest.raises(timing.Disagreement, match="gradient:1"):
        timing.compare(other, one, "float32")
    for wrong in ({}, one | {"gradient:2": one["gradient:2"] * np.float32("nan")}):
        with pytest.raises(timing.Disagreement):
            timing.compare(wrong, one, "float32")


def test_layers_are_those_of_the_network():
    """Names and kernel shapes; that the sizes are right, the traced network says."""
    found = {
        f"{layer.path}/kernel": layer.kernel_shape
        for layer in flops.layers(ours.model("lax"), SHAPE)
    }
    kernels = {p: v.shape for p, v in ours.weights().items() if p.endswith("/kernel")}
    assert found == kernels


@b0.SHORT_AND_WHOLE
def test_what_a_graph_replays_is_the_training_from_its_start(monkeypatch, weights):
    """Recording takes steps of its own, which must not show. Its recorder needs a GPU, and is not
    here: what stands in for it takes a step."""
    torch = pytest.importorskip("torch", reason="the peer is written in PyTorch (extra port)")
    from benchmarks import theirs

    def recorded(step):
        step()
        return step

    monkeypatch.setattr(theirs, "recorded", recorded)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        eager, graph = (
            theirs.Peer(SIZE, theirs.Variant(graph=graph), weights).training_step().arrays()
            for graph in (False, True)
        )
        assert timing.compare(graph, eager, "float32")[0] < 1e-5
        without = theirs.Peer(SIZE, theirs.Variant(graph=True)).training_step()  # as for memory
        assert np.isfinite(theirs.to_numpy(without.step()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_analytic_flops_are_those_of_the_traced_network(size):
    model, shape = ours.model("lax"), (1, *(size,) * 3, inputs.MODALITIES)
    for train in (False, True):
        found = flops.of_program(model, shape, train=train)
        assert flops.analytic_flops(model, shape, train=train) == found


def test_analytic_flops_at_128():
    shape = (2, 128, 128, 128, inputs.MODALITIES)
    model = ours.model("lax")
    forward, train = (flops.analytic_flops(model, shape, train=t) for t in (False, True))
    assert round(forward / 2e9) == 248  # thousand million multiply-adds per sample
    first = 2 * 2 * 128**3 * 27 * 4 * 16
    assert train == 3 * forward - first
