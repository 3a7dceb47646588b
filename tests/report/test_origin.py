import pytest

from crossdim_jax.report import origin

RECORD = {
    "id": "tf_efficientnet_lite0.in1k",
    "source": "package",
    "authors": "Google",
    "licence": "apache-2.0",
    "inflate": "mean",
    "certificate": {
        "problems": [],
        "timm": {"model": "tf_efficientnet_lite0", "features": [1e-7, 2e-6]},
        "volume": {"promises": {"edge": {}}, "stages": [{"edge": 3e-7}, {"edge": 1e-6}]},
    },
}


def test_weights_and_what_was_measured_of_them_are_two_lines():
    assert origin.facts(RECORD) == [
        (
            "Encoder started from",
            "tf_efficientnet_lite0.in1k; inflated by mean; Google; apache-2.0",
        ),
        (
            "Certificate of the weights",
            "2D equals timm's tf_efficientnet_lite0 to 2.0e-06; 3D equals 2D on a constant volume "
            "to 1.0e-06 with edge padding; no promise broken",
        ),
    ]


def test_what_was_not_promised_or_not_run_is_not_said():
    certificate = {
        "problems": ["one"],
        "timm": {"status": "not run"},
        "volume": {"promises": {"edge": {}}, "stages": [{"edge": 1.0}]},
    }
    [_, (_, said)] = origin.facts(RECORD | {"certificate": certificate})
    assert "timm" not in said and "1 promises broken" in said
    certificate["volume"]["promises"] = {}
    assert len(origin.facts(RECORD | {"certificate": certificate})) == 1
    assert "random numbers" in origin.facts({"id": "x", "source": "random"})[0][1]


def test_nobody_takes_a_control_for_the_weights():
    [(_, said)] = origin.facts({"id": "x", "control": "shuffled", "inflate": "mean"})
    assert said == "x; control: shuffled kernels; inflated by mean"
    assert "control: random numbers" in origin.facts({"id": "x", "control": "random"})[0][1]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"id": ""},
        {"control": []},
        {"certificate": 3},
        {"certificate": {"timm": [], "volume": {"promises": {}}}},
    ],
)
def test_a_run_without_weights_says_nothing(record):
    assert origin.facts(record) == []


@pytest.mark.parametrize(
    "stages", [None, 3, [None], [{"edge": "1"}], [{"edge": None}, {"edge": 1}]]
)
def test_stages_of_any_form_are_no_error(stages):
    volume = {"promises": {"edge": {}}, "stages": stages}
    assert len(origin.facts({"id": "x", "certificate": {"volume": volume}})) == 1
