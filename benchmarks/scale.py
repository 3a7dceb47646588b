"""MONAI's DynUNet on the same input, for scale: what an nnU-Net takes on this GPU."""

import argparse
import statistics

FILTERS = (32, 64, 128, 256, 320, 320)  # nnU-Net's 3D full-resolution plan for BraTS


def dynunet(options: argparse.Namespace) -> list[str]:
    """Lines of a list: forward and training step in bfloat16, in both layouts, or why not.

    Args:
      options: `size` and `rounds` are read.
    """
    try:
        from monai.networks.nets import DynUNet
    except ImportError:
        return ["- MONAI's DynUNet: monai is not installed (`pip install monai`)"]

    from benchmarks import inputs, theirs
    from benchmarks.timing import race

    lines = []
    for layout in theirs.FORMATS:
        net = DynUNet(
            spatial_dims=3,
            in_channels=inputs.MODALITIES,
            out_channels=inputs.REGIONS,
            kernel_size=[3] * 6,
            strides=[1, 2, 2, 2, 2, 2],
            upsample_kernel_size=[2] * 5,
            filters=FILTERS,
            norm_name="instance",
        )
        count = sum(p.numel() for p in net.parameters())
        made = theirs.Peer(options.size, theirs.Variant(layout), None, "bfloat16", net)
        for name, task in (("forward", made.forward), ("training step", made.training_step)):
            (samples,), _ = race([task()], options.rounds, 0.05)
            ms = 1e3 * statistics.median(samples.seconds)
            lines.append(f"- MONAI's DynUNet ({count / 1e6:.1f} M), bfloat16, {layout}: ")
            lines[-1] += f"{name} {ms:.3g} ms"
    return lines
