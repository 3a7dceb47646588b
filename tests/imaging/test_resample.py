import numpy as np

from crossdim_jax.imaging import resample


def test_resizing_keeps_the_edges_of_the_image_where_they_are():
    """A ramp over pixel centres stays that ramp, at twice and at half the size."""
    ramp = (np.arange(16) + 0.5)[None, None, :, None] * np.ones((1, 8, 1, 1))
    larger = resample.resize(ramp.astype(np.float32), (16, 32))[0, 0, :, 0]
    np.testing.assert_allclose(larger[1:-1], ((np.arange(32) + 0.5) / 2)[1:-1], rtol=1e-5)
    smaller = resample.resize(ramp.astype(np.float32), (4, 8))[0, 0, :, 0]
    np.testing.assert_allclose(smaller[1:-1], ((np.arange(8) + 0.5) * 2)[1:-1], rtol=1e-5)


def test_shrinking_does_not_alias(rng):
    noise = rng.normal(size=(1, 256, 256, 1)).astype(np.float32)
    assert resample.resize(noise, (32, 32)).std() < 0.2  # picking pixels would leave 1


def test_labels_stay_labels_and_come_back(rng):
    label = np.kron(rng.integers(0, 4, (1, 5, 6)), np.ones((1, 4, 4))).astype(np.uint8)
    larger = resample.resize_label(label, (40, 72))
    assert set(np.unique(larger)) <= set(range(4))
    np.testing.assert_array_equal(resample.resize_label(larger, label.shape[1:]), label)
