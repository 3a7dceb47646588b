"""Tables 2 and 3 of the paper, and one row for each patient."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from crossdim_jax.challenges.base import Evaluated, Table
from crossdim_jax.challenges.camus.volumes import QUANTITIES, UNITS, Measured
from crossdim_jax.metrics import biplane
from crossdim_jax.metrics.biplane import UNKNOWN, Volumes

METRICS = {"dice": "Dice", "mad_mm": "MAD (mm)", "hd_mm": "HD (mm)"}
STATISTICS = ("n", "r", "bias", "sd", "mae", "low", "high")


def contours(
    evaluated: Sequence[Evaluated], groups: Sequence[tuple[str, ...]], regions: Sequence[str]
) -> Table:
    """Table 2: mean and sd of Dice, MAD and HD by phase and contour, then by image quality.

    groups: the phase, and the quality if it is known, of each of `evaluated`.
    """
    phases = list(dict.fromkeys(group[0] for group in groups if group))
    qualities = sorted({group[1] for group in groups if len(group) > 1})
    parts = [("All", phase, [g[:1] == (phase,) for g in groups]) for phase in phases]
    parts += [
        (q.removeprefix("Image quality "), phase, [g == (phase, q) for g in groups])
        for q in qualities
        for phase in phases
    ]
    rows: list[tuple[str | float | None, ...]] = []
    for quality, phase, member in parts:
        of_part = [case.row for case, inside in zip(evaluated, member, strict=True) if inside]
        if of_part:
            for region in regions:
                rows.append((quality, phase, region, *_cells(of_part, region)))
    columns = ["Quality", "Phase", "Contour", "n"]
    for heading in METRICS.values():
        columns += [heading, "sd"]
    return Table(
        "table2",
        "Table 2: contours by phase and image quality",
        (*columns, "undefined"),
        tuple(rows),
        (
            "Mean and sd (n - 1) over images of all patients and both views.",
            "Undefined: images in which one of the two masks is empty; they have no distance and "
            "are left out of its mean.",
        ),
    )


def _cells(rows: Sequence[Mapping[str, float]], region: str) -> list[float | str | None]:
    cells: list[float | str | None] = [str(len(rows))]
    undefined = 0
    for metric in METRICS:
        values = np.array([row[f"{metric}_{region}"] for row in rows])
        known = values[~np.isnan(values)]
        undefined = max(undefined, len(values) - len(known))
        cells.append(float(known.mean()) if known.size else None)
        cells.append(float(known.std(ddof=1)) if known.size > 1 else None)
    return [*cells, str(undefined)]


def agreement(
    truth: Mapping[str, Measured],
    prediction: Mapping[str, Measured],
    clinical: Mapping[str, Volumes],
) -> Table:
    """Table 3: how EF, EDV and ESV of predictions agree with the truth's and with the cfgs'."""
    rows: list[tuple[str | float | None, ...]] = []
    for method in biplane.METHODS:
        for reference in ("truth", "cfg"):
            for quantity, field in QUANTITIES.items():
                pairs = [
                    (_reference(reference, method, field, truth[p], clinical[p]), found)
                    for p in truth
                    for found in [getattr(_volumes(prediction.get(p), method), field)]
                ]
                if reference == "cfg" and all(math.isnan(known) for known, _ in pairs):
                    continue
                found = biplane.agreement(*zip(*pairs, strict=True))
                numbers = [_number(found[name]) for name in STATISTICS]
                rows.append(
                    (
                        method,
                        reference,
                        f"{quantity} ({UNITS[quantity]})",
                        *numbers,
                        str(found["n_nan"]),
                    )
                )
    return Table(
        "table3",
        "Table 3: volumes and ejection fraction",
        (
            *("Method", "Reference", "Quantity", "n", "r", "bias", "sd", "MAE"),
            *("LoA from", "to", "unknown"),
        ),
        tuple(rows),
        (
            "Prediction minus reference. Truth: the same method on the annotated masks; cfg: what "
            "the cardiologist measured, as Info_*.cfg states.",
            "r: Pearson's correlation. LoA: limits of agreement, bias -+ 1.96 sd (n - 1).",
            *(f"{name}: {text}." for name, text in biplane.METHODS.items()),
            *_unknown("prediction", {p: prediction.get(p) for p in truth}),
            *_unknown("truth", truth),
        ),
    )


def patients(
    truth: Mapping[str, Measured],
    prediction: Mapping[str, Measured],
    clinical: Mapping[str, Volumes],
) -> Table:
    """Volumes of every patient, as a file only."""
    columns = ["patient"]
    for method in biplane.METHODS:
        for quantity in QUANTITIES.values():
            columns += [f"{quantity}_{method}_truth", f"{quantity}_{method}_prediction"]
    columns += [f"{quantity}_cfg" for quantity in QUANTITIES.values()]
    rows = []
    for patient in truth:
        row: list[str | float | None] = [patient]
        for method in biplane.METHODS:
            for quantity in QUANTITIES.values():
                for measured in (truth.get(patient), prediction.get(patient)):
                    row.append(_number(getattr(_volumes(measured, method), quantity)))
        row += [_number(getattr(clinical[patient], quantity)) for quantity in QUANTITIES.values()]
        notes = [
            f"{name}: {why}"
            for name, found in (
                ("truth", truth.get(patient)),
                ("prediction", _or(prediction, patient)),
            )
            if (why := found.why)
        ]
        rows.append((*row, "; ".join(notes)))
    return Table("patients", "Volumes", (*columns, "note"), tuple(rows), shown=False)


_NONE = Measured(dict.fromkeys(biplane.METHODS, UNKNOWN), "", "no prediction on the image's grid")


def _or(measured: Mapping[str, Measured], patient: str) -> Measured:
    return measured.get(patient) or _NONE


def _volumes(measured: Measured | None, method: str) -> Volumes:
    return (measured or _NONE).volumes[method]


def _reference(
    reference: str, method: str, field: str, truth: Measured, clinical: Volumes
) -> float:
    return getattr(truth.volumes[method] if reference == "truth" else clinical, field)


def _unknown(what: str, measured: Mapping[str, Measured | None]) -> list[str]:
    """Line that names the patients without volumes, and why; none if all have them."""
    lost = [
        f"{patient} ({(found or _NONE).why})"
        for patient, found in measured.items()
        if math.isnan(_volumes(found, "textbook").edv_ml)
    ]
    if not lost:
        return []
    named = "; ".join(lost[:10]) + (f"; and {len(lost) - 10} more" if len(lost) > 10 else "")
    return [f"{len(lost)} of {len(measured)} patients are not known from the {what}: {named}."]


def _number(value: float) -> float | str | None:
    if isinstance(value, int):
        return str(value)
    return None if math.isnan(value) else value
