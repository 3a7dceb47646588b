import pytest

from crossdim_jax.challenges.brats import challenge as brats
from tests.evaluation.cases import make_case


@pytest.fixture
def challenge():
    return brats.BraTS(layout="2021", et_min_mm3=0.0)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for i in range(3):
        make_case(root, f"BraTS2021_{i:05}", seed=i)
    return root


@pytest.fixture
def files(challenge, data):
    return challenge.cases(data, labelled=True)
