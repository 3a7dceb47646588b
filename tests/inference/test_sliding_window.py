"""Laws of the sliding window: it covers everything, weights sum out, flips undo themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.inference import device_sums, sliding_window, windows
from crossdim_jax.runtime import sharding


def logit(p):
    return jnp.log(p) - jnp.log1p(-p)


def pointwise(variables, windows):
    """A network that sees one voxel: its sliding window must equal it everywhere."""
    return logit(jnp.clip(windows * variables, 0.01, 0.99))


@pytest.mark.parametrize("size,window,overlap", [(64, 64, 0.5), (65, 64, 0.5), (200, 64, 0.25)])
def test_windows_cover_the_axis_and_overlap_enough(size, window, overlap):
    starts = windows.window_starts(size, window, overlap)
    assert starts[0] == 0 and starts[-1] == size - window
    assert all(b - a <= window * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("shape", [(8, 8, 8), (13, 9, 21), (5, 8, 30), (20, 17)])
@pytest.mark.parametrize("window_batch,flips", [(1, False), (3, True), (2, (1,))])
def test_pointwise_network_is_reproduced_everywhere(rng, shape, window_batch, flips):
    image = rng.uniform(0.1, 0.9, (*shape, 2)).astype(np.float32)
    predict = sliding_window.SlidingWindow(
        pointwise, (8,) * len(shape), 0.5, flips=flips, window_batch=window_batch
    )
    np.testing.assert_allclose(predict(1.0, image), image, rtol=1e-5)


def test_overlap_is_weighted_by_the_gaussian():
    """Two windows share columns 8 to 15; each column is the mean weighted by both Gaussians."""
    patch, image = (16, 16), np.ones((16, 24, 1), np.float32)

    def left_half(_, windows):
        right = jnp.where(jnp.arange(16) < 8, 0.9, 0.1)[None, None, :, None]
        return logit(jnp.broadcast_to(right, windows.shape))

    result = sliding_window.SlidingWindow(left_half, patch, 0.5)(None, image)[5, :, 0]
    weight = windows.gaussian_window(patch)[5]
    first, second = weight[8:], weight[:8]
    expected = (0.1 * first + 0.9 * second) / (first + second)
    np.testing.assert_allclose(result[8:16], expected, rtol=1e-5)
    np.testing.assert_allclose(result[[0, 23]], [0.9, 0.1], rtol=1e-5)
    assert np.ptp(expected) > 0.5


def test_flips_average_the_network_over_mirrored_inputs(rng):
    image = rng.normal(size=(8, 8, 8, 1)).astype(np.float32)

    def ramp(_, windows):  # depends on the position within the window
        return windows + jnp.linspace(-1, 1, 8).reshape(1, 8, 1, 1, 1)

    plain = sliding_window.SlidingWindow(ramp, (8, 8, 8))(None, image)
    mirrored = sliding_window.SlidingWindow(ramp, (8, 8, 8))(None, image[::-1])[::-1]
    both = sliding_window.SlidingWindow(ramp, (8, 8, 8), flips=(0,))(None, image)
    np.testing.assert_allclose(both, (plain + mirrored) / 2, rtol=1e-6)
    assert np.abs(plain - both).max() > 0.01


def test_network_is_compiled_once_for_images_of_any_size(rng):
    traces = []

    def network(_, windows):
        traces.append(windows.shape)
        return windows

    predict = sliding_window.SlidingWindow(network, (8, 8, 8), window_batch=2, flips=True)
    for shape in [(8, 8, 8, 1), (21, 9, 8, 1), (4, 30, 9, 1)]:
        predict(None, rng.normal(size=shape))
    assert traces == [(2, 8, 8, 8, 1)]


def test_every_process_gets_the_whole_result_of_a_sharded_batch(rng):
    """Replicated, a host can read it from its own devices; cut, it spans other hosts' as well."""
    mesh = sharding.make_mesh(2, 2)
    predict = sliding_window.SlidingWindow(
        pointwise, (8, 8, 8), window_batch=2, flips=True, sharding=sharding.batched(mesh)
    )
    image = rng.uniform(0.1, 0.9, (20, 9, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(predict(1.0, image), image, rtol=1e-5)
    windows = jax.device_put(np.ones((2, 8, 8, 8, 1), np.float32), predict.sharding)
    assert not windows.is_fully_replicated
    assert predict._probabilities(1.0, windows).is_fully_replicated


@pytest.mark.parametrize("shape", [(13, 9, 21), (5, 8, 30), (20, 17)])
@pytest.mark.parametrize(
    ("options", "mesh"),
    [({"flips": True}, None), ({"window_batch": 4}, (2, 2)), ({"window_batch": 3}, (1, 1))],
)
def test_sums_on_the_device_are_those_of_the_host(rng, monkeypatch, shape, options, mesh):
    if mesh is not None:
        options |= {"sharding": sharding.batched(sharding.make_mesh(*mesh), len(shape))}

    def ramp(variables, windows):  # depends on the position, and on the neighbours
        place = jnp.linspace(-1, 1, 8).reshape(1, *(1,) * (len(shape) - 1), 8, 1)
        return variables * (windows + jnp.roll(windows, 1, axis=1)) + place

    image = rng.normal(size=(*shape, 2)).astype(np.float32)
    predict = sliding_window.SlidingWindow(ramp, (8,) * len(shape), 0.4, classes=2, **options)
    expected = predict(0.5, image)
    asked = []
    monkeypatch.setattr(device_sums, "fit", lambda *args: asked.append(args) or True)
    monkeypatch.setattr(windows.Windows, "__call__", lambda *_: pytest.fail("summed on the host"))
    found = predict(0.5, image)
    assert asked[0][:2] == (image.shape, 2)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_sums_that_do_not_fit_stay_on_the_host():
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 4 * 4 * 1000 * (2 + 3 + 1)}

    assert device_sums.fit((10, 10, 10, 2), 3, Device())
    assert not device_sums.fit((10, 10, 11, 2), 3, Device())
    assert not device_sums.fit((10, 10, 10, 2), 3, jax.devices("cpu")[0])


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"window_batch": 0}, {"flips": (3,)}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        sliding_window.SlidingWindow(pointwise, (8, 8, 8), **wrong)


def test_a_2d_network_sees_every_slice_of_a_volume_once(rng):
    image = rng.uniform(0.1, 0.9, (5, 8, 12, 2)).astype(np.float32)
    seen = []

    def network(variables, slices):
        seen.append(slices.shape)
        return logit(slices * variables)

    predict = sliding_window.SlidingWindow(
        sliding_window.as_slices(network), (1, 8, 12), 0.5, flips=(1, 2), window_batch=2
    )
    np.testing.assert_allclose(predict(1.0, image), image, rtol=1e-5)
    assert seen == [(2, 8, 12, 2)]  # traced once


def test_softmax_probabilities_sum_to_one(rng):
    image = rng.normal(size=(20, 17, 3)).astype(np.float32)
    predict = sliding_window.SlidingWindow(lambda _, w: 3 * w, (16, 16), activation="softmax")
    result = predict(None, image)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)
    expected = np.exp(3 * image) / np.exp(3 * image).sum(-1, keepdims=True)
    np.testing.assert_allclose(result, expected, rtol=1e-4)
