"""Fate of BatchNorm when an encoder normalises otherwise, or in 3D."""

from collections.abc import Collection

from crossdim_jax.errors import WeightsError, check_name
from crossdim_jax.models import encoders
from crossdim_jax.models.family import FIXED, LAYER, NONE
from crossdim_jax.models.layers import NORMS

KEEPING = ("batch", "frozen")  # norms that keep running statistics
# What is asked for, and what the record then says of the statistics of a norm that keeps them.
STATISTICS = {"carry": "carried", "reestimate": "stale"}


def check(norm: str, modes: Collection[str], statistics: str) -> None:
    """Raises WeightsError if norm, modes and statistics are unknown or do not go together.

    Args:
      norm: the encoder's, one of `NORMS` or of `family.FIXED`.
      modes: the inflation modes in use, none in 2D.
      statistics: a key of `STATISTICS`.
    """
    check_name("norm", norm, (*NORMS, *FIXED), error=WeightsError)
    check_name("statistics", statistics, STATISTICS, error=WeightsError)
    if statistics == "reestimate" and norm not in KEEPING:
        raise WeightsError(
            f"Norm {norm!r} keeps no running statistics, so there are none to re-estimate; leave "
            f"that out, or choose norm {' or '.join(map(repr, KEEPING))}."
        )
    if norm == NONE and "repeat" in modes:
        raise WeightsError(
            "Inflation mode 'repeat' needs norms, and this network has none: with k taps along "
            "depth, responses would grow k-fold from one layer to the next. Choose mode 'mean', "
            "'center' or 'gaussian', or the network with batch norm."
        )
    if norm in KEEPING and "repeat" in modes and statistics == "carry":
        raise WeightsError(
            "Inflation mode 'repeat' cannot keep BatchNorm's running statistics: with k taps along "
            "depth, responses grow k-fold, and the statistics of the 2D network no longer "
            "describe them. Have them measured anew (--statistics=reestimate, or in a config "
            "weights.reestimate=16), or choose mode 'mean' or 'center', or norm 'instance' or "
            "'group', which measure their own statistics."
        )


def check_source(norm: str, architecture: str, statistics: str) -> None:
    """Raises WeightsError if a network cannot have that norm, or not its running statistics."""
    made_for = encoders.norm(architecture)
    if norm != made_for and (norm in FIXED or made_for in FIXED):
        kept = {LAYER: "keeps its LayerNorm over channels", NONE: "has no norms"}
        kept = kept.get(made_for, "has norms over voxels")
        raise WeightsError(
            f"{architecture} {kept}: found norm {norm!r}, expected {made_for!r}"
            f"{'' if made_for in FIXED else ' or another over voxels'}. Leave --norm out; the "
            "layers around an encoder have the norm that config.model.norm says."
        )
    if norm in KEEPING and made_for not in KEEPING and statistics == "carry":
        raise WeightsError(
            f"{architecture} is made for norm {made_for!r}: its weights come without the running "
            f"statistics of norm {norm!r}. Choose norm {made_for!r} or 'instance', or have "
            "statistics measured (--statistics=reestimate, or in a config weights.reestimate=16)."
        )


def drops(path: str, norm: str) -> bool:
    """True if a tensor has no place under this norm: running statistics, if it keeps none.

    Scale and bias carry over to every norm.
    """
    return norm not in KEEPING and path.startswith("batch_stats/")


def recorded(norm: str, statistics: str) -> str:
    """Entry of the file's record for the running statistics: carried, stale, dropped or none."""
    if norm in FIXED:
        return "none"
    return STATISTICS[statistics] if norm in KEEPING else "dropped"
