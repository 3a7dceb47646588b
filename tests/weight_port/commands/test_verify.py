"""A certificate says what is so, and a file that departs from its own is caught."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import Weights, content_sha256, load_weights, save_weights
from crossdim_jax.weights.recipe import Recipe, kernel_modes
from tests.weight_port import conftest, short, tiny
from weight_port import certificate, departures, forward, ours, records, volume
from weight_port.__main__ import main
from weight_port.commands import verify
from weight_port.commands.making import record
from weight_port.convert import convert
from weight_port.volume import sum_over_depth

FLAT = Recipe(2, 3, "batch", None, "tile")
DEEP = Recipe(3, 4, "batch", "mean", "gray")
NOTHING = volume.Promise("nowhere", "")


@pytest.fixture(scope="module", autouse=True)
def _small():
    with tiny.registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "PLANE", 32)
        yield


@pytest.fixture(scope="module")
def source(_small):
    return tiny.source()


@pytest.fixture
def write(tmp_path, source):
    """recipe -> a file made by it, with changes to its tensors and its record."""

    def make(recipe, *, arrays=None, name="w", **changes):
        made = convert(source, recipe)
        path = tmp_path / f"{name}.safetensors"
        held = record(source, recipe, made) | changes
        return save_weights(path, {**made.arrays, **(arrays or {})}, held)

    return make


def worst(made, column):
    return max(row[column] for row in made["volume"]["stages"])


# ------------------------------------------------------------------ what it says


# Recipe, and what it promises where depth is padded by its edge and by zeros. The last are measured
# in `make test-all`: other tests measure the first, and ACS stands for what promises nothing.
PROMISES = [
    (dataclasses.replace(DEEP, inflate="center"), "everywhere", "everywhere"),
    (dataclasses.replace(DEEP, inflate="gaussian", factorised=True), "everywhere", "inside"),
    (dataclasses.replace(DEEP, inflate="acs"), "nowhere", "nowhere"),
    (dataclasses.replace(DEEP, inflate="repeat", norm="instance"), "up to eps", "nowhere"),
    (dataclasses.replace(DEEP, norm="instance"), "everywhere", "nowhere"),
    (dataclasses.replace(DEEP, inflate="sqrt", depth_kernels=1), "everywhere", "everywhere"),
    (DEEP, "everywhere", "inside"),
    (dataclasses.replace(DEEP, inflate="sqrt"), "nowhere", "nowhere"),
    (dataclasses.replace(DEEP, stem="reinit"), "everywhere", "inside"),
    (
        dataclasses.replace(DEEP, inflate_at=("blocks_.*=center", "conv_stem/kernel=center")),
        *("everywhere", "everywhere"),
    ),
]


def test_what_a_recipe_promises(source):
    for recipe, *expected in PROMISES:
        arrays = convert(source, recipe).arrays
        modes = kernel_modes(recipe, {path: array.shape for path, array in arrays.items()})
        taps = {path: volume._taps(path, arrays) for path in modes}
        found = volume.promises(recipe, taps, modes)
        assert [found[padding].where for padding in ("edge", "zero")] == expected, recipe


@pytest.mark.parametrize(
    ("recipe", "edge", "zero"),
    PROMISES[:6] + [pytest.param(*row, marks=pytest.mark.slow) for row in PROMISES[6:]],
    ids=lambda value: value.inflate if isinstance(value, Recipe) else None,
)
def test_what_a_recipe_promises_is_kept_and_the_rest_is_measured(recipe, edge, zero, write, source):
    made = certificate.measure(load_weights(write(recipe)), source)
    assert made["problems"] == []
    promised = made["volume"]["promises"]
    assert (promised["edge"]["where"], promised["zero"]["where"]) == (edge, zero)
    limit = 1e-3 if recipe.norm == "instance" else 1e-5
    assert worst(made, "own") < limit  # whatever the mode
    assert (worst(made, "edge") < limit) == (edge == "everywhere")
    assert (worst(made, "zero") < limit) == (zero == "everywhere")
    inside = made["volume"]["stages"][0]
    if zero == "inside":
        assert inside["slices"]["inside"] > 0 and inside["zero_inside"] < limit
    assert made["made"]["differing"] == [] and made["timm"]["reason"].endswith("efficientnet_tiny")
    for row in made["volume"]["stages"]:
        assert row["activations"].keys() == {"2d", "constant", "uncorrelated"}
        assert row["activations"]["2d"]["variance"] > 0


def test_every_tensor_of_both_sides_is_accounted_for(write, source):
    recipe = dataclasses.replace(DEEP, norm="instance", stem="reinit")
    made = certificate.measure(load_weights(write(recipe)), source)["made"]
    assert set(made["used"]) | set(made["unused"]) == set(source.arrays)
    assert "conv_stem.weight" in made["unused"] and "bn1.running_var" in made["unused"]
    assert made["fresh"] == ["params/encoder/conv_stem/kernel"]


def test_certify_writes_it_into_the_file_and_beside_it(write, source):
    path = write(DEEP)
    before = load_weights(path)
    made = certificate.certify(path, source=source)
    after = load_weights(path)
    assert after.metadata == {**before.metadata, "certificate": made}
    assert made["content_sha256"] == content_sha256(before.arrays)
    assert content_sha256(after.arrays) == made["content_sha256"]
    beside = path.with_name("w.safetensors.certificate.json")
    assert json.loads(beside.read_text()) == made
    assert made["versions"].keys() == {"crossdim_jax", *records.PACKAGES}
    again = certificate.measure(after, source)
    assert departures.departures(made, again) == []


def test_without_the_source_the_kernels_own_sums_stand_in(write, source):
    recipe = dataclasses.replace(DEEP, inflate="repeat", norm="instance")
    weights = load_weights(write(recipe))
    alone = certificate.measure(weights, absent="it is on the other machine")
    assert alone["problems"] == []
    for part in ("made", "timm"):
        assert alone[part]["status"] == "not run"
        assert alone[part]["reason"] == "it is on the other machine"
    assert "summed over depth" in alone["volume"]["reference"]
    assert alone["volume"]["reference"].endswith("(it is on the other machine)")
    known = certificate.measure(weights, source)
    assert known["volume"]["reference"] == "the source"
    for one, other in zip(alone["volume"]["stages"], known["volume"]["stages"], strict=True):
        assert one["edge"] == pytest.approx(other["edge"], rel=0.05)

    weights = load_weights(write(dataclasses.replace(DEEP, inflate="acs")))
    alone = certificate.measure(weights)
    assert alone["volume"]["reference"].startswith("not run: no source was given, and acs")
    assert "edge" not in alone["volume"]["stages"][0] and alone["problems"] == []


def test_the_2d_network_is_the_sum_over_depth(source):
    flat = convert(source, dataclasses.replace(FLAT, in_channels=4, stem="gray")).arrays
    for factorised in (False, True):
        deep = convert(source, dataclasses.replace(DEEP, factorised=factorised)).arrays
        summed = sum_over_depth(deep)
        assert summed.keys() == flat.keys()
        for path in flat:
            np.testing.assert_allclose(summed[path], flat[path], rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------ what it catches


KERNEL = "params/encoder/blocks_1_0/conv_dw/kernel"


def test_kernels_that_are_not_what_the_record_says_break_promises(write, source):
    three_fold = convert(source, dataclasses.replace(DEEP, inflate="repeat", norm="instance"))
    path = write(DEEP, arrays={KERNEL: three_fold.arrays[KERNEL]})
    with pytest.raises(WeightsError) as caught:
        certificate.certify(path, source=source)
    text = str(caught.value)
    assert f"1 tensors differ: {KERNEL}" in text and "Do not train with it" in text
    assert "3D with edge padding against 2D: feature /4 differs by" in text
    stored = load_weights(path).metadata["certificate"]  # the evidence is kept
    assert len(stored["problems"]) == text.count("\n  ")


def test_another_source_is_noticed(write, source):
    other = dataclasses.replace(
        source,
        arrays={**source.arrays, "bn1.bias": source.arrays["bn1.bias"] + 1},
        origin={**source.origin, "sha256": "1" * 64},
    )
    found = certificate.measure(load_weights(write(DEEP)), other)["problems"]
    assert any("1111, the file was made of 0000" in problem for problem in found)
    assert any("1 tensors differ: params/encoder/bn1/bias" in problem for problem in found)


def test_measured_statistics_are_nobodys_copy(write, source):
    recipe = dataclasses.replace(DEEP, statistics="reestimate")
    arrays = {"batch_stats/encoder/bn1/mean": np.full(16, 0.25, np.float32)}
    path = write(recipe, arrays=arrays, statistics="reestimated (8)")
    made = certificate.measure(load_weights(path), source)
    assert made["problems"] == [] and made["made"]["differing"] == []
    assert "statistics" in made["volume"]["promises"]["edge"]["why"]
    # Without the source the 2D network has the new statistics: another one, which is no departure.
    alone = certificate.measure(load_weights(path))
    assert alone["volume"]["stages"][0]["edge"] != made["volume"]["stages"][0]["edge"]
    assert departures.departures(alone, made) == departures.departures(made, alone) == []


def test_limits_follow_what_a_feature_makes_of_a_small_change():
    """No looser than that, so that a sound network is held to the tolerance."""
    feature = np.random.default_rng(0).normal(size=(1, 4, 4, 8))
    moved = [feature * (1 + change) for change in (1e-6, 1e-4, 3e-3, 0.5)]
    assert forward.limits([feature] * 4, moved) == [forward.TOLERANCE, 1e-4, 3e-3, 0.1]


def test_a_sound_network_is_held_to_the_tolerance(write, source):
    made = certificate.measure(load_weights(write(DEEP)), source)
    assert {row["limit"] for row in made["volume"]["stages"]} == {forward.TOLERANCE}
    row = made["volume"]["stages"][2]
    row["own"] = 3e-4
    (problem,) = volume.broken([row], {"edge": NOTHING, "zero": NOTHING})
    assert "feature /8 differs by 0.0003, expected at most 0.0001" in problem
    assert volume.broken([row | {"limit": 1e-3}], {"edge": NOTHING, "zero": NOTHING}) == []


def test_departures_are_named_and_rounding_is_not():
    stored = {
        "content_sha256": "a",
        "date": "then",
        "timm": {"status": "run", "features": [1e-7, 2e-7], "logits": 1e-7},
        "source_sha256": None,
        "volume": {
            "stages": [
                {
                    "zero": 0.4,
                    "zero_inside": None,
                    "slices": {"inside": 3},
                    "activations": {"2d": {"mean": 1e-9, "variance": 1e-9}},
                }
            ]
        },
        "activations": [{"2d": {"mean": 1e-9, "variance": 1e-9}}],
        "made": {"status": "not run", "reason": "x"},
    }
    now = copy.deepcopy(stored)
    now["date"] = "now"
    now["timm"] |= {"features": [3e-7, 9e-7], "logits": {"status": "not run", "reason": "no head"}}
    now["volume"]["stages"][0]["zero"] = 0.405
    now["source_sha256"] = "c"  # unknown to the other
    # Means are rounding where they are small beside the standard deviation.
    now["volume"]["stages"][0]["activations"]["2d"] = {"mean": -1e-9, "variance": 1.01e-9}
    now["activations"] = [{"2d": {"mean": -1e-9, "variance": 1.01e-9}}]
    now["made"] = {"status": "run", "differing": []}
    assert departures.departures(stored, now) == []
    now["content_sha256"] = "b"
    now["timm"]["features"][1] = 3e-4
    now["volume"]["stages"][0] |= {"zero": 0.5, "slices": {"inside": 2}, "zero_inside": 0.1}
    now["volume"]["stages"][0]["activations"]["2d"] = {"mean": 1e-6, "variance": 0.0}
    now["activations"] = [{"2d": {"mean": 1e-6, "variance": 0.0}}]
    assert departures.departures(stored, now) == [
        "activations[0].2d.mean: certified 1e-09, found 1e-06",
        "activations[0].2d.variance: certified 1e-09, found 0.0",
        "content_sha256: certified a, found b",
        "timm.features[1]: certified 2e-07, found 0.0003",
        "volume.stages[0].activations.2d.mean: certified 1e-09, found 1e-06",
        "volume.stages[0].activations.2d.variance: certified 1e-09, found 0.0",
        "volume.stages[0].slices.inside: certified 3, found 2",
        "volume.stages[0].zero: certified 0.4, found 0.5",
        "volume.stages[0].zero_inside: certified None, found 0.1",
    ]


def test_counts_must_be_the_same():
    found = departures.departures({"made": {"target": 100}}, {"made": {"target": 101}})
    assert found == ["made.target: certified 100, found 101"]


def test_random_weights_without_a_hash_are_not_said_to_differ(write):
    weights = load_weights(write(DEEP, source="random"))
    found, why = verify.find_source(weights)
    assert found is None and "nothing in the file tells which" in why


def test_a_certificate_of_another_version_is_named(write, capsys):
    path = write(DEEP, certificate={"certificate": 0, "date": "then"})
    for command in ("inspect", "verify"):
        assert main([command, str(path)]) == (command == "verify")
        told = " ".join(capsys.readouterr().out.split())
        assert "the certificate in the file is of version 0, and this program" in told


def test_a_record_that_lacks_fields_is_named(write):
    weights = load_weights(write(FLAT, eps=None))
    for use in (certificate.measure, ours.as_source):
        with pytest.raises(WeightsError, match=r"w\.safetensors: its record has no eps.*again"):
            use(weights)


# ------------------------------------------------------------------ the command


@pytest.fixture
def checkpoint(tmp_path, source):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    path = tmp_path / "tiny.safetensors"
    save_file(dict(source.arrays), path)
    return path


def test_verify_from_a_checkpoint(write, checkpoint, capsys):
    path = write(DEEP, sha256=verify.source.sha256(checkpoint))
    command = ["verify", str(path), f"--checkpoint={checkpoint}"]
    assert main(command) == 1
    assert "there is no certificate in the file; `verify --write`" in capsys.readouterr().out
    assert main([*command, "--write"]) == 0
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "all are the same" in told and f"{path} is what its certificate of 20" in told
    assert main(["verify", str(path), "--json", f"--checkpoint={checkpoint}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["departures"] == [] and said["found"]["made"]["status"] == "run"
    assert main(["verify", str(path)]) == 0  # what needs the source is left out
    assert "not run: its source tiny.safetensors was not given" in " ".join(
        capsys.readouterr().out.split()
    )


def test_verify_from_a_2d_file_of_ours(write, source, capsys):
    path, flat = write(DEEP), write(FLAT, name="flat")
    certificate.certify(path, source=source)
    assert main(["verify", str(path), f"--source={flat}"]) == 0
    assert "all are the same" in capsys.readouterr().out
    assert main(["verify", str(path), f"--source={path}"]) == 1
    assert "holds 3D weights" in capsys.readouterr().err
    source = ours.as_source(load_weights(flat))
    assert certificate.source_sha256(source) == certificate.source_sha256(tiny.source())


def test_verify_catches_a_file_that_was_changed_since(write, source, capsys):
    path = write(DEEP)
    made = certificate.certify(path, source=source)
    weights = load_weights(path)
    changed = {**weights.arrays, KERNEL: weights.arrays[KERNEL] * 1.5}
    save_weights(path, changed, weights.metadata)  # its hash is right again
    assert main(["verify", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"content_sha256: certified {made['content_sha256'][:37]}..." in told
    assert "volume.stages[1].activations.constant.variance" in told

    save_weights(path, weights.arrays, weights.metadata)
    beside = certificate.certificate_path(path)
    beside.write_text(beside.read_text().replace('"batch": 1', '"batch": 2'))
    assert main(["verify", str(path)]) == 1
    assert "is not the certificate that is in the file" in capsys.readouterr().out
    beside.write_text("{")
    assert main(["verify", str(path)]) == 1
    assert "cannot be read as JSON" in capsys.readouterr().out
    beside.unlink()
    assert main(["verify", str(path)]) == 0

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(path)]) == 1
    assert "error: " in (told := capsys.readouterr().err) and "tensors are not what" in told


# ------------------------------------------------------------------ against timm


@pytest.fixture(scope="module")
def real():
    """timm's B0, cut short, with random weights and statistics, as a source."""
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    name = "tf_efficientnet_b0"
    with short.cut():
        arrays = {k: v.numpy() for k, v in conftest.random_timm(name).state_dict().items()}
        yield dataclasses.replace(
            tiny.source(),
            arrays=arrays,
            name=verify.source.parse_name(name),
            origin={"id": name, "file": None, "sha256": None},
        )


def certified(real, **changes):
    """The certificate of the 2D file of the real source, its record changed."""
    made = convert(real, FLAT)
    held = record(real, FLAT, made) | changes
    return certificate.measure(Weights(made.arrays, held), real)


def test_a_2d_file_is_timms_network_feature_by_feature_and_logit_by_logit(real):
    found = certified(real)
    assert found["problems"] == [] and found["timm"]["of"] == "this file"
    assert len(found["timm"]["features"]) == 5 and max(found["timm"]["features"]) < 1e-5
    assert found["timm"]["logits"] < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [{"padding": "symmetric"}, pytest.param({"eps": 1e-5}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_other_convention_is_caught(wrong, real):
    problems = certified(real, **wrong)["problems"]
    assert any(p.startswith("timm: feature /32 differs by") for p in problems)
    assert any(p.startswith("timm: logits differ by") for p in problems)
