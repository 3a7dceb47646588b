"""Memory of a gradient as the compiler says, beside what a plan counts without compiling.

    python -m benchmarks.step_memory

Four patches of DX-Net, some minutes each. The last column is what `activations.MARGIN` must cover.
"""

import math

import jax
import jax.numpy as jnp

from crossdim_jax import losses, models
from crossdim_jax.models import activations, anisotropy

# (batch, patch, thickness of a voxel in pixels, channels, classes)
PATCHES = (
    (1, (64, 64, 64), 1.0, 1, 3),
    (2, (40, 64, 64), 1.0, 1, 3),
    (1, (16, 128, 128), 15.0, 1, 2),
    (1, (96, 96, 96), 1.0, 4, 3),
)


def temporaries(model, batch: int, patch: tuple[int, ...], channels: int, classes: int) -> int:
    """Bytes of a compiled gradient's temporaries at their peak."""
    image = jax.ShapeDtypeStruct((batch, *patch, channels), jnp.float32)
    target = jax.ShapeDtypeStruct((batch, *patch, classes), jnp.uint8)
    variables = jax.eval_shape(lambda x: models.init(model, 0, x.shape), image)

    def loss(params, others, image, target):
        logits, _ = model.apply(
            {"params": params, **others},
            image,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["moments"],
        )
        return losses.dice_ce(logits, target)["loss"][0]

    params = variables.pop("params")
    compiled = jax.jit(jax.grad(loss)).lower(params, variables, image, target).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints a line for each patch."""
    print("batch  patch            bytes a voxel: counted  compiled  ratio")
    for batch, patch, thickness, channels, classes in PATCHES:
        options = anisotropy.depth_options("efficientnet_b0", thickness, patch[0])
        model = models.build(
            "dxnet",
            out_channels=classes,
            depth_kernels=options.kernels,
            depth_strides=options.strides,
        )
        counted = activations.footprint(model, patch, channels, classes).bytes_per_voxel
        found = temporaries(model, batch, patch, channels, classes) / (batch * math.prod(patch))
        shape = " x ".join(map(str, patch))
        print(f"{batch:<7}{shape:<32}{counted:8.0f}{found:10.0f}{found / counted:7.2f}", flush=True)


if __name__ == "__main__":
    main()
