"""What becomes of BatchNorm when an encoder normalises otherwise, or in 3D."""

from crossdim_jax.errors import WeightsError
from crossdim_jax.models.layers import NORMS


def check(norm: str, mode: str | None) -> None:
    """Raises WeightsError if the norm is unknown, or wrong together with the inflation mode.

    Args:
      norm: the encoder's, one of `NORMS`.
      mode: the inflation mode, None in 2D.
    """
    if norm not in NORMS:
        raise WeightsError(f"Unknown norm {norm!r}; the known ones: {', '.join(NORMS)}.")
    if norm == "batch" and mode == "repeat":
        raise WeightsError(
            "Inflation mode 'repeat' cannot keep BatchNorm's running statistics: with k taps along "
            "depth, responses grow k-fold, and the statistics of the 2D network no longer "
            "describe them. Choose mode 'mean' or 'center', or norm 'instance' or 'group', which "
            "measure their own statistics."
        )


def drops(path: str, norm: str) -> bool:
    """Whether a tensor has no place under this norm: running statistics, if it keeps none.

    Scale and bias carry over to every norm.
    """
    return norm != "batch" and path.startswith("batch_stats/")
