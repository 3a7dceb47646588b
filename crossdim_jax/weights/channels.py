"""A stem trained on c input channels, mostly 3 -> n channels. Pure numpy.

`adapt` changes the 2D kernel, before it is inflated. `reinit` and `released` have nothing to carry
over: they draw the whole kernel in its final shape (`draw`).

As many channels as the source has are left as they are by every policy but `reinit`, which is an
explicit wish to redraw. A stem of one channel becomes the same by every policy: a part n in each of
n channels, exact where these are equal.
"""

from collections.abc import Callable

import numpy as np

from crossdim_jax.errors import WeightsError, check_name

SOURCE_CHANNELS = 3  # of a classifier of photographs


def tile(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The c channels in turn, times c/n: timm's rule; exact on grey input if c divides n."""
    own = kernel.shape[2]
    return kernel[:, :, np.arange(channels) % own] * (own / channels)


def gray(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The channels' sum over n, in every channel: exact on grey input for every n."""
    return np.repeat(kernel.sum(axis=2, keepdims=True) / channels, channels, axis=2)


def total(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The channels' sum, for a single channel: exact on grey input."""
    return kernel.sum(axis=2, keepdims=True)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """N(0, 2 / fan_in), fan_in of the final kernel (*k, in, out). He et al. 2015."""
    return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))


def unscaled_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """N(0, 1), as the paper's released code draws it."""
    return rng.normal(size=shape)


ADAPT: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "tile": tile,
    "gray": gray,
    "sum": total,
}
DRAW: dict[str, Callable[[tuple[int, ...], np.random.Generator], np.ndarray]] = {
    "reinit": he_normal,
    "released": unscaled_normal,
}
POLICIES = (*ADAPT, *DRAW)


def check(policy: str, channels: int) -> None:
    """Raises WeightsError if the policy is unknown or not for that number of channels."""
    check_name("stem", policy, POLICIES, error=WeightsError)
    if channels < 1:
        raise WeightsError(f"Input channels: found {channels}, expected 1 or more.")
    if policy == "sum" and channels not in (1, SOURCE_CHANNELS):
        raise WeightsError(
            f"Stem policy 'sum' is for 1 input channel, found {channels}; use 'gray', which is "
            "the same for any number."
        )


def draws(policy: str, channels: int) -> bool:
    """True if the stem is drawn anew rather than carried over.

    The released code redraws whenever the number of channels is neither 1 nor 3.
    """
    check(policy, channels)
    return policy == "reinit" or (policy == "released" and channels not in (1, SOURCE_CHANNELS))


def adapt(kernel: np.ndarray, channels: int, policy: str) -> np.ndarray:
    """Carries a stem kernel over to another number of input channels.

    Args:
      kernel: (k, k, c, out), before inflation.
      channels: n, the number of input channels.
      policy: a key of `ADAPT`, or "released" with 1 or 3 channels.

    Returns:
      (k, k, n, out), of the kernel's dtype.
    """
    if draws(policy, channels):
        raise ValueError(f"stem policy {policy!r} draws {channels} channels; see draw()")
    if channels == kernel.shape[2]:
        return kernel
    policy = "sum" if policy == "released" else policy
    rule = gray if policy == "sum" and channels > 1 else ADAPT[policy]
    return rule(kernel, channels).astype(kernel.dtype, copy=False)


def draw(shape: tuple[int, ...], policy: str, seed: int) -> np.ndarray:
    """A new stem kernel (*k, n, out) in float32, the same for the same seed."""
    return DRAW[policy](shape, np.random.default_rng(seed)).astype(np.float32)
