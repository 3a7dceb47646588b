"""Folders of studies with scores drawn from a model whose truth is known; no network is run."""

import json
from pathlib import Path

import numpy as np

from crossdim_jax.storage.plain import csv_text
from crossdim_jax.study.grid import PlannedRun, Study

REGIONS = ("anterior", "posterior")


def study(effects, **fields) -> Study:
    """Study of arms; the first is the reference. effects: arm -> points of Dice over it."""
    given = {
        "question": "Do weights of photographs help?",
        "arms": {arm: {"weights.inflate": arm} for arm in effects},
        "reference": next(iter(effects)),
        "cases": (5, 20),
        "seeds": (0, 1, 2),
        "metric": "dice",
        "reach": 0.7,
        "compare": (),
        "common": {"train.choose": "last"},
    }
    return Study(**(given | fields))


def protocol(made: Study, **fields) -> dict:
    """What the page reads of a protocol."""
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "numbers": list(made.cases),
        "budget": {arm: {"steps": 60} for arm in made.arms},
        "held_out": ["case_00"],
        "amendments": [],
    } | fields


def planned(folder: Path, made: Study) -> list[PlannedRun]:
    """Runs of a study, seed by seed."""
    return [
        PlannedRun(arm, n, seed, folder / arm / f"n_{n}" / f"seed_{seed}", {"seed": seed})
        for seed in made.seeds
        for n in made.cases
        for arm in made.arms
    ]


def write(folder: Path, made: Study, effects, *, held_out=12, drawn=0) -> list[PlannedRun]:
    """Run folders as trainings leave them: Dice of 70 points, 2 more with each doubling of cases,
    an SD of 5 between cases, 1 between seeds and 2 of a case in a seed; effects on top of it."""
    runs = planned(folder, made)
    of_cases = np.random.default_rng(drawn).normal(0, 5, held_out)
    for run in runs:
        key = [drawn, run.seed, run.cases, list(made.arms).index(run.arm)]
        rng = np.random.default_rng(key)
        seed = np.random.default_rng(key[:3]).normal()
        mean = 70 + 2 * np.log2(run.cases) + effects[run.arm] + seed
        scores = (mean + of_cases + rng.normal(0, 2, held_out)) / 100
        write_run(run.workdir, {f"case_{i:02}": v for i, v in enumerate(scores)}, rng=rng)
    return runs


def write_run(folder: Path, scores, *, rng=None, speed=1.0, truths=None) -> None:
    """Run folder with one score of each held-out case, equal in both classes."""
    (folder / "evaluation").mkdir(parents=True)
    rows = [[case, v, v, ""] for case, v in scores.items()]
    heading = ["id", *(f"dice_{region}" for region in REGIONS), "note"]
    (folder / "evaluation/cases.csv").write_text(csv_text([heading, *rows]))
    summary = {
        "regions": list(REGIONS),
        "definitions": {"dice": "2 TP / (2 TP + FP + FN)"},
        "n_cases": len(scores),
        "statistics": {},
        "truths": truths or dict.fromkeys(scores, "0123"),
    }
    (folder / "evaluation/summary.json").write_text(json.dumps(summary))
    rng = rng or np.random.default_rng(0)
    final = float(np.nanmean(list(scores.values())))
    lines = []
    for step in range(1, 61):
        dice = final * (1 - np.exp(-step / 12 * speed)) + rng.normal(0, 0.02)
        lines.append({"kind": "train", "step": step, "epoch": step / 20, "dice": dice})
        lines[-1] |= {"loss": 1 - dice, "seconds": 30 + 1.5 * step}
        if step % 20 == 0:
            lines.append({"kind": "validation", "step": step, "epoch": step / 20, "dice": dice})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cost = {"device": "cpu", "devices": 1, "parameters": 1234567, "peak_memory_mb": 2345.6}
    (folder / "run.json").write_text(json.dumps(cost))
