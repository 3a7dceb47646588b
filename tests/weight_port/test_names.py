"""What a timm name says, and the list of the networks that can be ported."""

import subprocess
import sys

import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from weight_port import families, names
from weight_port.families import efficientnet


@pytest.mark.parametrize(
    ("name", "architecture", "padding", "eps"),
    [
        ("tf_efficientnet_b0.ns_jft_in1k", "efficientnet_b0", "same", 1e-3),
        ("tf_efficientnet_l2.ns_jft_in1k_475", "efficientnet_l2", "same", 1e-3),
        ("tf_efficientnet_b8", "efficientnet_b8", "same", 1e-3),
        ("efficientnet_b4.ra2_in1k", "efficientnet_b4", "symmetric", 1e-5),
        ("efficientnet_b0", "efficientnet_b0", "symmetric", 1e-5),
        ("tf_efficientnetv2_s.in21k_ft_in1k", "efficientnetv2_s", "same", 1e-3),
        ("efficientnetv2_rw_t.ra2_in1k", "efficientnetv2_rw_t", "symmetric", 1e-5),
        ("tf_efficientnet_lite4", "efficientnet_lite4", "same", 1e-3),
        ("efficientnet_lite0.ra_in1k", "efficientnet_lite0", "symmetric", 1e-5),
        ("efficientnet_el_pruned.in1k", "efficientnet_el_pruned", "symmetric", 1e-5),
        # Pruned from TensorFlow's weights, whatever the name says.
        ("efficientnet_b1_pruned.in1k", "efficientnet_b1_pruned", "same", 1e-3),
        ("tf_efficientnet_cc_b1_8e", "efficientnet_cc_b1_8e", "same", 1e-3),
        ("efficientnet_b3_g8_gn", "efficientnet_b3_g8_gn", "symmetric", 1e-5),
    ],
)
def test_the_name_says_the_architecture_and_the_convention(name, architecture, padding, eps):
    parsed = names.parse_name(name)
    assert (parsed.architecture, parsed.padding, parsed.eps) == (architecture, padding, eps)
    assert parsed.timm == name and parsed.model == name.split(".")[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("efficientnet_b9", "efficientnet_b0, .*efficientnet_l2.*weight_port list"),
        ("alexnet", "efficientnet_b0, .*efficientnet_l2.*weight_port list"),
        ("", "efficientnet_b0, .*efficientnet_l2.*weight_port list"),
        ("alexnet", r"not a supported timm name\. Supported.*\[tf_\]efficientnet_b0, "),
        ("resnet50d.ra2_in1k", "stem is three convolutions"),
        ("tf_vgg16", "timm knows it as vgg16"),
        ("tf_efficientnet_b1_pruned", "timm knows it as efficientnet_b1_pruned"),
        ("efficientnetv2_b0", "timm knows it as tf_efficientnetv2_b0"),
        ("gc_efficientnetv2_rw_t.agc_in1k", "global context"),
        ("test_efficientnet.r160_in1k", "fixture"),
        ("efficientnet_b0.", "Supported"),
        ("tf_tf_efficientnet_b0", "Supported"),
    ],
)
def test_other_names_are_refused_with_the_reason(name, reason):
    with pytest.raises(WeightsError, match=reason):
        names.parse_name(name)


@pytest.mark.parametrize("model", ["tf_efficientnet_b0", "efficientnet_b4"])
def test_the_convention_is_timms_own(model, timm_model):
    name, network = names.parse_name(model), timm_model(model)
    assert network.bn1.eps == pytest.approx(name.eps)
    same = type(network.conv_stem).__name__ == "Conv2dSame"
    assert name.padding == ("same" if same else "symmetric")


def test_every_listed_model_can_be_parsed_and_leads_to_its_row():
    rows = names.supported()
    assert [row.architecture for row in rows] == list(encoders.ENCODERS)
    for row in rows:
        assert row.models == families.of(row.architecture).models(row.architecture)
        for model in row.models:
            parsed = names.parse_name(model)
            assert parsed.architecture == row.architecture
            assert parsed.padding == row.paddings[model]
        assert len(row.channels) in (4, 5, 6) and row.tags is None
    own = [row for row in rows if families.of(row.architecture) is efficientnet]
    assert len({model for row in own for model in row.models}) == 71
    every = [model for row in rows for model in row.models]
    assert len(set(every)) == len(every)
    b0 = rows[0]
    assert (b0.parameters, b0.resolution) == (3_595_388, 224)
    assert b0.paddings == {"tf_efficientnet_b0": "same", "efficientnet_b0": "symmetric"}


def test_timm_agrees_on_conventions_and_resolutions():
    """Asked of timm's own description of every model, without building one."""
    timm = pytest.importorskip("timm")
    import inspect

    rows = names.supported(ask_timm=True)
    assert all(set(row.licences) == set(row.tags) for row in rows)
    for row in (row for row in rows if families.of(row.architecture) is efficientnet):
        for model in row.models:
            entry = inspect.getsource(timm.models.model_entrypoint(model))
            said = "same" if "'pad_type', 'same'" in entry else "symmetric"
            assert (row.paddings[model], efficientnet.convention(model)[1]) == (
                said,
                1e-3 if "BN_EPS_TF_DEFAULT" in entry else 1e-5,
            ), model
        assert all(names.parse_name(tag).architecture == row.architecture for tag in row.tags)
    by_name = {row.architecture: row for row in rows}
    assert "tf_efficientnet_b0.ns_jft_in1k" in by_name["efficientnet_b0"].tags
    assert by_name["efficientnet_b0"].licences["tf_efficientnet_b0.ns_jft_in1k"] == "apache-2.0"
    assert by_name["efficientnet_l2"].resolution == 800


def test_the_list_needs_neither_timm_nor_torch():
    program = (
        "import sys\n"
        "sys.modules['timm'] = sys.modules['torch'] = None\n"
        "from weight_port import names\n"
        "assert len(names.supported()) == 113\n"
        "try: names.supported(ask_timm=True)\n"
        "except names.WeightsError as error: assert 'pip install' in str(error)\n"
        "else: raise SystemExit('timm was there')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
