"""Out of timm and back again: a 2D file exports to the very tensors it was ported from."""

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.file import load_weights, save_weights
from crossdim_jax.weights.recipe import Recipe
from tests.weight_port import short
from weight_port import ours, source
from weight_port.__main__ import main
from weight_port.commands import export
from weight_port.commands.making import record
from weight_port.convert import convert

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
load_file = pytest.importorskip("safetensors.torch").load_file


@pytest.fixture(scope="module", autouse=True)
def _short():
    with short.cut():
        yield


def flat(architecture, **changes):
    return Recipe(
        **{"ndim": 2, "in_channels": 3, "norm": encoders.norm(architecture), "inflate": None}
        | {"stem": "tile"}
        | changes
    )


def write(path, origin, recipe):
    """A weight file as `port` writes it."""
    converted = convert(origin, recipe)
    return save_weights(path, converted.arrays, record(origin, recipe, converted))


# Every layout there is: depthwise and 1x1, conditional kernels, group norm, fused blocks.
@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_b0", "efficientnet_cc_b0_4e", "efficientnet_b0_gn", "tf_efficientnetv2_b0"],
)
def test_the_exported_tensors_are_the_sources_own(name, make_source, tmp_path):
    origin = make_source(name)
    path = write(tmp_path / "w.safetensors", origin, flat(origin.name.architecture))
    found = export.state_dict(load_weights(path))
    assert found.keys() == origin.arrays.keys()
    for key, array in origin.arrays.items():
        assert found[key].shape == array.shape, key
        np.testing.assert_array_equal(found[key], array)


def test_timm_loads_the_export_and_computes_the_same(tmp_path, make_source, timm_model, capsys):
    """By the command, with another number of input channels; every tensor has its place."""
    origin = make_source("efficientnet_b0")
    path = write(tmp_path / "w.safetensors", origin, flat("efficientnet_b0", in_channels=6))
    out = tmp_path / "new" / "timm.safetensors"
    assert main(["export", str(path), f"--out={out}"]) == 0
    model = timm.create_model("efficientnet_b0", in_chans=6, num_classes=1000).eval()
    assert "timm.create_model('efficientnet_b0', in_chans=6, num_classes=1000)" in (
        capsys.readouterr().out
    )
    model.load_state_dict(load_file(out), strict=True)
    image = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = timm_model("efficientnet_b0")(image)
        found = model(torch.cat([image, image], 1))  # each colour is there twice, at half weight
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_file_is_not_replaced_unless_told_so(tmp_path, make_source, capsys):
    path = write(
        tmp_path / "w.safetensors", make_source("efficientnet_b0"), flat("efficientnet_b0")
    )
    assert main(["export", str(path)]) == 0
    out = tmp_path / "w-timm.safetensors"
    out.write_bytes(b"mine")
    assert main(["export", str(path)]) == 1
    assert f"{out} exists" in capsys.readouterr().err and out.read_bytes() == b"mine"
    assert main(["export", str(path), "--overwrite"]) == 0
    assert "conv_stem.weight" in load_file(out)
    assert main(["export", str(path), f"--out={tmp_path}/x.pth"]) == 1
    assert "ends with .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head": False}, "no classification head.*without --no-head"),
        ({"norm": "instance"}, "lacks 48 tensors.*batch_stats/encoder/.*--norm=batch"),
        ({"statistics": "reestimate"}, "statistics are stale; measure them first"),
        ({"ndim": 3, "inflate": "mean"}, "holds 3D weights.*--ndim=2"),
    ],
)
def test_files_that_are_not_timms_network_are_refused(
    changes, match, tmp_path, make_source, capsys
):
    origin = make_source("efficientnet_b0")
    path = write(tmp_path / "w.safetensors", origin, flat("efficientnet_b0", **changes))
    assert main(["export", str(path)]) == 1
    error = capsys.readouterr().err
    assert "w.safetensors" in error
    with pytest.raises(WeightsError, match=match):
        raise WeightsError(error)
    assert list(tmp_path.iterdir()) == [path]


def test_a_2d_file_is_a_source_like_the_checkpoint_it_came_from(tmp_path, make_source):
    """Inflating it gives the same 3D tensors, and keeps the record of where they come from."""
    origin = make_source("tf_efficientnet_b0")
    path = write(tmp_path / "w.safetensors", origin, flat("efficientnet_b0"))
    again = ours.as_source(ours.read_2d(path, "a test"))
    assert (again.name.padding, again.name.eps) == ("same", 1e-3)
    assert again.origin["sha256"] == origin.origin["sha256"]
    assert again.origin["by_way_of"] == {"file": "w.safetensors", "sha256": source.sha256(path)}
    recipe = Recipe(ndim=3, in_channels=16, norm="batch", inflate="gaussian", stem="gray")
    expected, found = convert(origin, recipe).arrays, convert(again, recipe).arrays
    assert expected.keys() == found.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("mode", ["mean", "center", "gaussian"])
def test_3d_summed_over_depth_is_2d_again(mode, make_source):
    """All tensors of the encoder, of other depths than in the plane too."""
    origin = make_source("tf_efficientnet_b0")
    recipe = Recipe(ndim=3, in_channels=3, norm="batch", inflate=mode, stem="tile")
    plane = convert(origin, flat("efficientnet_b0", head=False)).arrays
    for taps in (None, (2, 3, 5, 4, 1, 3, 5, 2)):
        changes = {} if taps is None else {"depth_kernels": taps}
        deep = convert(origin, Recipe(**{**vars(recipe), **changes})).arrays
        assert deep.keys() == plane.keys()
        for path, array in deep.items():
            summed = array.sum(0) if array.ndim == 5 else array
            np.testing.assert_allclose(summed, plane[path], rtol=1e-5, atol=1e-6, err_msg=path)
