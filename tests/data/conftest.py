"""Small phantoms, and the cases cached from them, made once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.data import cache

SHAPE = (26, 30, 28)


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory) -> Path:
    """Four phantoms; not to be changed."""
    root = tmp_path_factory.mktemp("phantoms")
    phantom.generate(root, 4, shape=SHAPE)
    return root


@pytest.fixture
def own_phantoms(phantom_folder, tmp_path) -> Path:
    """A copy of the phantoms that the test may change."""
    return Path(shutil.copytree(phantom_folder, tmp_path / "data"))


@pytest.fixture
def challenge() -> Challenge:
    return challenges.get("phantom")


@pytest.fixture(scope="session")
def cached(phantom_folder, tmp_path_factory) -> list[cache.CachedCase]:
    """The four phantoms in a cache."""
    challenge = challenges.get("phantom")
    files = challenge.cases(phantom_folder, labelled=True)
    return cache.build(challenge, files, tmp_path_factory.mktemp("cache"), progress=False)
