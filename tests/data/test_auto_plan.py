import dataclasses

import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.data import auto_plan, plan_network
from crossdim_jax.data.fingerprint import Fingerprint, Intensities, Measured
from crossdim_jax.data.plan_length import LEAST_STEPS, VALIDATIONS, Budget
from crossdim_jax.data.plan_network import Network
from crossdim_jax.data.plan_record import Plan, table
from crossdim_jax.errors import ConfigError
from crossdim_jax.models.activations import Footprint

VOLUME = (128, 160, 144)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """1000 bytes a voxel instead of a trace of the network, which takes seconds."""
    monkeypatch.setattr(
        plan_network.activations, "footprint", lambda *args: Footprint(10_000_000, 1000.0)
    )


def case(shape=VOLUME, spacing_mm=(1.0, 1.0, 1.0), masked=False, mean=5.0):
    quantiles = tuple(np.linspace(mean - 2, mean + 2, 200))
    one = Intensities(mean, 1.0, mean - 3, mean + 3, quantiles)
    return Measured(spacing_mm, shape, shape, (masked,), 1000, (one,))


def found(*cases, channels=("T1",), classes=3):
    return Fingerprint(channels, classes, {f"case{i}": c for i, c in enumerate(cases)})


def plan(*cases, channels=("T1",), network="dxnet", given=None, rates=None, epoch=None, **budget):
    of = found(*cases, channels=channels)
    network = Network(network, len(channels), of.classes)
    options = {"rates": rates, "given": given, "steps_per_epoch": epoch}
    return auto_plan.plan(of, network, budget=Budget(**budget), **options)


# ------------------------------------------------------------------- spacing and normalisation


def test_the_target_spacing_is_the_median_of_each_axis():
    spacings = [(1.0, 0.5, 0.5), (2.0, 0.7, 0.7), (3.0, 0.9, 0.9)]
    assert plan(*(case(spacing_mm=s) for s in spacings)).spacing_mm == (2.0, 0.7, 0.7)


def test_of_few_thick_slices_the_tenth_percentile_is_taken():
    spacings = [(float(z), 1.0, 1.0) for z in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]
    few = plan(*(case((20, 256, 256), s) for s in spacings))
    assert few.spacing_mm == (4.0, 1.0, 1.0) and "10th percentile" in few.reasons["spacing_mm"]
    many = plan(*(case((200, 256, 256), s) for s in spacings))
    assert many.spacing_mm == (8.0, 1.0, 1.0)


def test_a_thick_axis_that_is_not_depth_is_made_finer():
    made = plan(case((256, 256, 20), (0.7, 0.7, 5.0)))
    assert made.spacing_mm == (0.7, 0.7, 1.4)
    assert "thick slices along z only" in made.reasons["spacing_mm"]


@pytest.mark.parametrize("name,scheme", [("CT", "ct"), ("T1", "zscore"), ("noNorm", "nonorm")])
def test_normalisation_is_by_the_channels_name(name, scheme):
    made = plan(case(), channels=(name,))
    assert made.normalisation == (scheme,)
    assert set(made.intensities) == ({"0"} if scheme == "ct" else set())


def test_the_reason_says_whether_images_are_masked():
    assert "whole image" in plan(case()).reasons["normalisation"]
    assert "inside of a mask" in plan(case(masked=True)).reasons["normalisation"]
    assert "(1 of 2)" in plan(case(), case(masked=True)).reasons["normalisation"]


# ------------------------------------------------------------------- patch, depth and batch


def test_small_volumes_are_padded_until_the_deepest_map_holds_several_voxels():
    """The hippocampus: 36 x 50 x 35 voxels of 1 mm."""
    made = plan(*[case((36, 50, 35))] * 100)
    assert made.patch == (40, 64, 64)
    assert made.depth_strides == (2, 1, 2, 2, 1, 1, 1, 1) and made.depth_kernels is None
    assert "5 x 2 x 2" in made.reasons["patch"]


@pytest.mark.parametrize("thickness", [1.0, 2.5, 6.0, 15.0])
@pytest.mark.parametrize("slices", [2, 3, 7, 8, 9, 15, 31, 37, 63, 100, 129])
def test_the_network_takes_every_patch_and_its_deepest_map_has_two_voxels_each_way(
    thickness, slices
):
    made = plan(case((slices, 70, 30), (thickness, 1.0, 1.0)), memory_gib=30)
    model = models.build(
        "dxnet",
        out_channels=3,
        depth_kernels=made.depth_kernels,
        depth_strides=made.depth_strides,
    )
    model.check_size(made.patch)
    assert min(np.array(made.patch) // model.divisors(3)) >= 2
    # At 15 times the thickness, 42 slices are as much as 256^3 voxels would hold of cubes.
    assert made.patch[0] >= min(slices, 42) and made.patch[1:] == (96, 64)


def test_the_patch_shrinks_with_the_memory_and_stays_within_it():
    sizes = []
    for memory_gib in (2, 4, 8, 16, 64):
        made = plan(*[case((400, 400, 400))] * 100, memory_gib=memory_gib)
        voxels = made.batch_size * np.prod(made.patch)
        assert Footprint(10_000_000, 1000.0).step_bytes(voxels) <= memory_gib * 2**30
        assert made.batch_size >= 2
        sizes.append(np.prod(made.patch))
    assert sizes == sorted(set(sizes))


def test_where_even_the_smallest_patch_is_too_large_it_is_said():
    made = plan(case(), memory_gib=0.01)
    assert made.patch[1:] == (64, 64) and made.batch_size == 1
    assert "smallest that the network takes" in made.reasons["patch"]


def test_a_patch_has_the_proportions_of_the_volume():
    made = plan(*[case((100, 400, 400))] * 10, memory_gib=8)
    z, y, x = made.patch
    assert y == x and 2.5 < y / z < 6


def test_a_batch_is_no_large_part_of_the_data_set():
    assert plan(*[case((36, 50, 35))] * 200).batch_size == 3
    assert plan(*[case((36, 50, 35))] * 400).batch_size == 7
    assert plan(case((36, 50, 35))).batch_size == 2


def test_thick_slices_get_the_encoder_that_the_spacing_asks_for():
    made = plan(case((11, 320, 320), (7.5, 0.5, 0.5)))
    assert made.depth_kernels == (1, 1, 1, 1, 3, 5, 5, 3)
    assert made.depth_strides == (1, 1, 1, 1, 2, 1, 1, 1)
    assert "15 times" in made.reasons["depth_kernels"]


def test_dsnet_gets_a_depth_that_it_takes():
    made = plan(case(), network="dsnet")
    models.build("dsnet").check_size(made.patch)
    assert made.depth_kernels is None and made.depth_strides is None


def test_slices_are_brought_to_one_size():
    made = plan(*[case((30, 250, 300), (5.0, 1.0, 1.0))] * 20, network="omnianet")
    assert made.patch == (256, 320) and made.spacing_mm is None
    assert 2 <= made.batch_size <= auto_plan.MOST_SLICES
    assert f"{-(-600 // made.batch_size)} an epoch" in made.reasons["epochs"]


def test_volumes_of_one_slice_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="one slice only.*dataset_omnianet"):
        plan(case((1, 256, 256)))


# ------------------------------------------------------------------- length


def test_epochs_make_up_the_steps():
    made = plan(*[case()] * 11, steps=300)
    each = -(-11 // made.batch_size)
    assert abs(made.epochs * each - 300) <= each / 2
    assert f"{made.epochs * each} steps, {each} an epoch" in made.reasons["epochs"]


def test_a_time_gives_its_steps_and_limits_the_patch():
    cases = [case((200, 200, 200))] * 50
    free = plan(*cases)
    rate = 1e5
    made = plan(*cases, minutes=30, voxels_per_second=rate)
    steps = 30 * 60 * rate / (made.batch_size * np.prod(made.patch))
    assert steps >= LEAST_STEPS and np.prod(made.patch) < np.prod(free.patch)
    assert made.epochs * -(-50 // made.batch_size) == pytest.approx(steps, rel=0.15)
    assert "30 minutes" in made.reasons["patch"] and "30 minutes" in made.reasons["epochs"]


# ------------------------------------------------------------------- overriding, printing


GIVEN = {
    "spacing_mm": (2.0, 1.0, 1.0),
    "normalisation": ("ct",),
    "patch": (64, 96, 96),
    "depth_kernels": (1, 3, 3, 3, 3, 3, 3, 3),
    "depth_strides": (1, 1, 2, 2, 2, 1, 2, 1),
    "batch_size": 5,
    "loss": "dice_bce",
    "epochs": 7,
    "constant_epochs": 2,
    "decay_per_epoch": 0.8,
    "validate_every_epochs": 3,
    "checkpoint_every_steps": 11,
}


@pytest.mark.parametrize("name", Plan.FIELDS)
def test_every_line_can_be_given_and_the_others_follow(name):
    made = plan(case(), given={name: GIVEN[name]})
    assert getattr(made, name) == GIVEN[name]
    assert made.reasons[name] == "given"
    assert sum(reason == "given" for reason in made.reasons.values()) == 1


def test_what_is_given_decides_what_follows():
    made = plan(case((130, 128, 128)), given={"depth_strides": 1, "patch": (33, 64, 64)})
    assert made.patch == (33, 64, 64) and made.depth_strides == (1,)
    coarse = plan(case(), given={"spacing_mm": (2.0, 2.0, 2.0)})
    assert coarse.patch == (64, 96, 96)  # of 64 x 80 x 72
    assert plan(case(), given={"spacing_mm": None}).patch == plan(case()).patch


@pytest.mark.parametrize(
    "given,message",
    [
        ({"patches": 1}, "no line patches; known: spacing_mm"),
        ({"spacing_mm": (1.0, 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three numbers above 0"),
        ({"normalisation": ("ct", "ct")}, "expected one for each of T1"),
        ({"normalisation": ("minmax",)}, "known: ct, zscore"),
        ({"patch": (33, 64, 64)}, "multiple"),
        ({"patch": (64, 64)}, "expected 3 lengths"),
        ({"depth_strides": (2, 2, 1, 1, 1, 1, 1, 1)}, "no stride in the plane"),
    ],
)
def test_a_line_that_cannot_be_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        plan(case(), given=given)


def test_the_table_has_each_line_with_its_reason():
    made = plan(case((11, 320, 320), (7.5, 0.5, 0.5)), channels=("CT",))
    shown = table(made.lines(list(Plan.FIELDS.values())))
    assert all(len(line) <= 100 for line in shown.splitlines())
    flat = " ".join(shown.split())
    for name, field in Plan.FIELDS.items():
        assert sum(line.startswith(field) for line in shown.splitlines()) == 1
        assert " ".join(made.reasons[name].split()[:4]) in flat


def test_settings_hold_every_line_and_the_intensities_of_ct_alone():
    made = plan(case(), channels=("CT",))
    values = made.settings()
    assert set(values) == {*Plan.FIELDS.values(), Plan.INTENSITIES}
    assert values["data.patch"] == made.patch and values["train.epochs"] == made.epochs
    assert values["challenge.intensities"]["0"]["mean"] == 5.0
    assert plan(case()).settings()["challenge.intensities"] is None


@pytest.mark.parametrize("epochs", [1, 7, 90, 4000])
def test_schedule_and_validations_follow_from_the_epochs(epochs):
    made = plan(case(), given={"epochs": epochs}, rates=(1e-3, 1e-5))
    assert 0 <= made.constant_epochs <= epochs / 2
    assert 1e-3 * made.decay_per_epoch**epochs == pytest.approx(1e-5)
    assert epochs / made.validate_every_epochs <= VALIDATIONS
    assert made.validate_every_epochs == 1 or 2 * epochs / made.validate_every_epochs > VALIDATIONS
    assert made.checkpoint_every_steps >= 50  # an epoch of one step
    assert plan(*[case()] * 500).checkpoint_every_steps is None


def test_epochs_are_as_long_as_the_config_says():
    made = plan(*[case()] * 50, steps=300, epoch=20)
    assert made.epochs == 15 and "300 steps, 20 an epoch" in made.reasons["epochs"]


def test_overlapping_classes_are_predicted_by_sigmoids():
    assert plan(case()).loss == "dice_ce"
    regions = dataclasses.replace(found(case()), regions=True)
    assert auto_plan.plan(regions, Network("dxnet", 1, 3)).loss == "dice_bce"
