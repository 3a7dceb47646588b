"""Commands of `python -m weight_port`, one module each.

A command's module has `add_arguments(parser)` and `main(args) -> exit status`, and is imported only
when it is asked for.
"""

from typing import NamedTuple


class Command(NamedTuple):
    """A row of `COMMANDS`.

    Attributes:
      module: where it is.
      says: what it does, in one line.
      examples: shown at the end of its help.
      overrides: whether it takes `--config.FIELD=VALUE`; it finds them in `args.overrides`.
    """

    module: str
    says: str
    examples: str = ""
    overrides: bool = False


DEFAULT = "port"
COMMANDS = {
    "port": Command(
        "weight_port.commands.port",
        "turns a 2D classifier's weights into the weights of a 2D or 3D encoder",
        """examples:
  python -m weight_port --config=configs/brats_dxnet.py
      what that experiment will load; --config.weights.inflate=mean and other overrides work
  python -m weight_port tf_efficientnet_b0.ns_jft_in1k --ndim=3 --inflate=repeat \\
      --in-channels=16 --stem=tile --norm=instance --out=weights/
      the same by hand
  python -m weight_port tf_efficientnet_b0.ns_jft_in1k --checkpoint=model.safetensors
      from a file, without a network""",
        overrides=True,
    ),
    "list": Command(
        "weight_port.commands.listing",
        "names the networks whose weights can be ported",
        """examples:
  python -m weight_port list v2
  python -m weight_port list --json""",
    ),
    "inflate": Command(
        "weight_port.commands.inflate_file",
        "makes 3D weights of a 2D weight file; needs neither torch nor timm",
        """examples:
  python -m weight_port inflate weights/b0-2d.safetensors --inflate=gaussian --out=weights/
  python -m weight_port inflate weights/b0-2d.safetensors --config=configs/brats_dxnet.py""",
        overrides=True,
    ),
    "export": Command(
        "weight_port.commands.export",
        "writes a 2D weight file as the state dict of timm's network",
        """examples:
  python -m weight_port export weights/b0-2d.safetensors --out=b0_timm.safetensors""",
    ),
    "reestimate": Command(
        "weight_port.commands.reestimate",
        "measures a weight file's BatchNorm statistics anew, on volumes",
        """examples:
  python -m weight_port reestimate weights/b0-3d.safetensors --volumes 'ct/*.nii.gz'
      a file with 1 input channel
  python -m weight_port reestimate weights/b0-3d-2ch.safetensors \\
      --volumes 'cases/*/*_flair.nii.gz' 'cases/*/*_t1.nii.gz'
      one pattern a channel; the files of each, sorted, belong together""",
    ),
    "verify": Command(
        "weight_port.commands.verify",
        "runs a weight file against its source and compares with its certificate",
    ),
    "inspect": Command(
        "weight_port.commands.inspect",
        "shows a weight file's record, tensors and certificate",
    ),
}
