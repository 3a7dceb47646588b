"""Origin of a run's encoder: the line of its weights, and what their certificate measured."""

from collections.abc import Mapping
from typing import Any

from crossdim_jax.weights import control


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of (name, text) for a page.

    record: a run's weights.json, of any origin: what it lacks is left out.
    """
    found = [("Encoder started from", _weights(record))] if record.get("id") else []
    certificate = record.get("certificate")
    if isinstance(certificate, Mapping) and (measured := _measured(certificate)):
        found.append(("Certificate of the weights", measured))
    return found


def _weights(record: Mapping[str, Any]) -> str:
    parts = [str(record["id"]), *filter(None, [control.text(record)])]
    if record.get("source") == "random":
        parts.append("random numbers")
    if record.get("inflate"):
        parts.append(f"inflated by {record['inflate']}")
    parts += [str(record[field]) for field in ("authors", "licence") if record.get(field)]
    return "; ".join(parts)


def _measured(certificate: Mapping[str, Any]) -> str:
    """Text of the errors of the 2D and the 3D network, and whether a promise was broken."""
    parts = []
    timm, volume = certificate.get("timm"), certificate.get("volume")
    if isinstance(timm, Mapping) and (worst := _largest(timm.get("features"))) is not None:
        parts.append(f"2D equals timm's {timm.get('model')} to {worst:.1e}")
    if isinstance(volume, Mapping) and isinstance(volume.get("promises"), Mapping):
        stages = volume.get("stages") if isinstance(volume.get("stages"), list) else []
        stages = [stage for stage in stages if isinstance(stage, Mapping)]
        worst = _largest([stage.get("edge") for stage in stages])
        if "edge" in volume["promises"] and worst is not None:
            parts.append(f"3D equals 2D on a constant volume to {worst:.1e} with edge padding")
    if parts and isinstance(problems := certificate.get("problems"), list):
        parts.append(f"{len(problems)} promises broken" if problems else "no promise broken")
    return "; ".join(parts)


def _largest(values: Any) -> float | None:
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return None
    return max(values, default=None)
