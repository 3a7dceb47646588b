import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import losses, models
from crossdim_jax.models import activations
from tests.toy import ToyNet


def toy(spatial, classes=2, channels=1):
    net = ToyNet(classes=classes)
    return net, activations.footprint(net, spatial, channels, classes)


def test_what_is_kept_grows_with_the_voxels():
    _, small = toy((8, 16, 16))
    _, large = toy((16, 32, 32))
    assert small.parameters == large.parameters == 27 * 4 + 4 + 27 * 4 * 2 + 2
    assert large.bytes_per_voxel == pytest.approx(small.bytes_per_voxel, rel=0.02)


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("classes", [2, 30])
def test_the_compiler_needs_about_what_is_counted(loss, classes):
    spatial = (16, 32, 32)
    net, footprint = toy(spatial, classes)
    image = jnp.zeros((1, *spatial, 1))
    target = jnp.zeros((1, *spatial, classes), jnp.uint8)
    variables = models.init(net, 0, image.shape)

    def total(variables):
        logits = net.apply(variables, image, train=True)
        return losses.LOSSES[loss].function(logits, target)["loss"][0]

    compiled = jax.jit(jax.grad(total)).lower(variables).compile()
    found = compiled.memory_analysis().temp_size_in_bytes
    counted = footprint.step_bytes(16 * 32 * 32) - footprint.step_bytes(0)
    assert 0.4 * counted < found < counted


@pytest.mark.slow
def test_of_dxnet_thick_slices_cost_more_a_voxel_than_cubes():
    """Depth is not reduced as the plane is."""
    flat = models.build("dxnet", out_channels=2, depth_strides=1, depth_kernels=1)
    cube = models.build("dxnet", out_channels=2)
    costs = [activations.footprint(net, (32, 32, 32), 1, 2).bytes_per_voxel for net in (flat, cube)]
    assert 1.5 < costs[0] / costs[1] < 4
