"""`python -m benchmarks.whole`: a case of full size in one piece, on several devices and on one.

DX-Net with random weights on random numbers, on devices that the host is cut into. Prints, for
each number of devices, what a device needs and how long a prediction takes, and then how far the
probabilities are apart. Exit status 1 if they are not equal to rounding.
"""

import argparse
import os
import resource
import sys
import time

ALIKE = 1e-4  # of probabilities: float32 through some hundred layers


def main() -> int:
    """Measures and prints; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole", description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(155, 240, 240), help="z y x")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--devices", type=int, default=4)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={options.devices}"
    )

    import jax
    import numpy as np

    from crossdim_jax import models, ops
    from crossdim_jax.inference.sliding_window import SlidingWindow
    from crossdim_jax.inference.whole_volume import WholeVolume
    from crossdim_jax.run.plan import Memory
    from crossdim_jax.runtime import compile_cache, sharding

    compile_cache.cache_compiled_programs()
    image = np.random.default_rng(0).normal(size=(*options.size, options.channels))
    image, results = image.astype(np.float32), []
    for depth in (options.devices, 1):
        mode = ops.choose("auto", depth_shards=depth)
        model, mesh = models.build("dxnet", ops=mode), sharding.make_mesh(1, depth)
        variables = models.init(model, 0, (1, 32, 32, 32, options.channels))
        variables = jax.device_put(variables, sharding.replicated(mesh))
        window = SlidingWindow(model.apply, (32, 32, 32))
        predict, started = WholeVolume(model.apply, model.check_size, mesh, window), time.time()
        memory = Memory.of(predict.compiled(variables, options.size, options.channels))
        print(f"{depth} devices: {memory} each, compiled in {time.time() - started:.0f} s")
        started = time.time()
        results.append(predict(variables, image))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"  predicted in {time.time() - started:.0f} s, peak of the process {peak:.1f} GiB")
        sys.stdout.flush()
    apart = float(np.abs(results[0] - results[1]).max())
    print(
        f"{tuple(options.size)} with {options.channels} channels: probabilities at most "
        f"{apart:.2g} apart, their standard deviation {results[1].std():.2g}"
    )
    return 0 if apart <= ALIKE else 1


if __name__ == "__main__":
    sys.exit(main())
