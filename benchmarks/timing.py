"""The method: outputs and gradients are compared first, then both sides take turns; medians."""

import dataclasses
import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import machine

# Float32 everywhere: the rounding of a network, not of one operation. Bfloat16 keeps 8 bits: that
# comparison only catches blunders, the same code has been compared in float32 before.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}

# Tensors whose norm is below this part of all tensors' together are compared against that part.
# Some gradients are zero but for rounding: of a bias that a later instance norm removes, of
# everything before a norm over a single voxel.
FLOOR = 1e-2

# Where rounding alone moves results by more than the tolerance, neither side may be this many times
# as far from float64 as the other.
AS_FAR = 3

SETTLE_S = 0.01  # between turns, so that the threads of one side have stopped spinning


class Disagreement(Exception):
    """Two implementations do not compute the same thing; there is nothing to time."""


@dataclasses.dataclass
class Contestant:
    """One implementation of one thing to be timed.

    Attributes:
      name: for tables.
      step: starts one execution and returns what to wait for.
      wait: returns when that is done.
      arrays: name -> what it computes, for the comparison; channels last.
      notes: numbers known before timing: seconds to compile, floating-point operations.
    """

    name: str
    step: Callable[[], Any]
    wait: Callable[[Any], None]
    arrays: Callable[[], dict[str, np.ndarray]]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Case:
    """Something that both sides do.

    Attributes:
      group: "network" or "operation".
      name: unique within the group.
      dtype: "float32" or "bfloat16".
      ours: ops mode -> contestant.
      theirs: variant -> a function that makes its contestant.
      detail: shapes, in words.
      exact: makes what the peer computes in float64, for what the dtype cannot tell to the
        tolerance, such as gradients through many norms; None where it can.
      compiling: the variants that compile when they are made or first run.
    """

    group: str
    name: str
    dtype: str
    ours: Callable[[str], Contestant]
    theirs: Mapping[str, Callable[[], Contestant]]
    detail: str = ""
    exact: Callable[[], Mapping[str, np.ndarray]] | None = None
    compiling: Collection[str] = ()


@dataclasses.dataclass
class Samples:
    """Seconds per step of one contestant, one number a round."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median, least and most, in milliseconds, and how many."""
        ms = [1e3 * s for s in self.seconds]
        return {
            "median_ms": statistics.median(ms),
            "min_ms": min(ms),
            "max_ms": max(ms),
            "rounds": len(ms),
        }


def distance(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative error over tensors, and the tensor's name.

    The error of a tensor is `||a - b|| / max(||b||, FLOOR * all||)`, Euclidean norms in float64;
    "all" are the tensors of the same kind, the part of the name before ":".

    Raises:
      Disagreement: a tensor is missing, has another shape or is not finite.
    """
    if set(ours) != set(theirs):
        raise Disagreement(f"different tensors: {sorted(set(ours) ^ set(theirs))}")
    squares: dict[str, float] = {}
    wide = {name: np.asarray(b, np.float64) for name, b in theirs.items()}
    for name, b in wide.items():
        kind = name.split(":")[0]
        squares[kind] = squares.get(kind, 0.0) + float(np.sum(b * b))
    worst = (-1.0, "")
    for name, b in wide.items():
        a = np.asarray(ours[name], np.float64)
        if a.shape != b.shape:
            raise Disagreement(f"{name}: ours is {a.shape}, theirs {b.shape}")
        floor = FLOOR * math.sqrt(squares[name.split(":")[0]])
        error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), floor, 1e-30)
        if not math.isfinite(error):
            raise Disagreement(f"{name}: not finite")
        worst = max(worst, (error, name))
    return worst


def compare(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    dtype: str,
    exact: Mapping[str, np.ndarray] | None = None,
) -> tuple[float, str]:
    """`distance` of two results, or with `exact` the larger of their distances from that.

    Raises:
      Disagreement: also where it exceeds `TOLERANCE[dtype]` and, with `exact`, is more than
        `AS_FAR` times the smaller.
    """
    if exact is None:
        error, name = distance(ours, theirs)
        if error > TOLERANCE[dtype]:
            raise Disagreement(
                f"{name}: relative error {error:.2g}, at most {TOLERANCE[dtype]:.0e} allowed"
            )
        return error, name
    a, b = distance(ours, exact), distance(theirs, exact)
    if max(a, b)[0] > max(TOLERANCE[dtype], AS_FAR * min(a, b)[0]):
        raise Disagreement(
            f"ours is {a[0]:.2g} from float64 ({a[1]}), theirs {b[0]:.2g} ({b[1]}): more than "
            f"{AS_FAR} times as far"
        )
    return max(a, b)


def once(contestant: Contestant, steps: int = 1) -> float:
    """Seconds per step over some steps, waited for at the end."""
    start = time.perf_counter()
    for _ in range(steps):
        result = contestant.step()
    contestant.wait(result)
    return (time.perf_counter() - start) / steps


def steps_for(contestant: Contestant, sample_s: float) -> int:
    """Warms up; the number of steps that take at least `sample_s` seconds."""
    once(contestant)
    took = max(once(contestant), 1e-6)
    if took >= sample_s:
        return 1
    return math.ceil(sample_s / max(once(contestant, min(10, math.ceil(sample_s / took))), 1e-6))


def race(
    contestants: Sequence[Contestant], rounds: int, sample_s: float
) -> tuple[list[Samples], float | None]:
    """A B A B ...: in every round each contestant in turn, at least `sample_s` seconds each.

    Returns the samples of each, and the share of the cores that others used meanwhile.
    """
    steps = [steps_for(c, sample_s) for c in contestants]
    samples, others = [Samples() for _ in contestants], machine.Others()
    for _ in range(rounds):
        for contestant, n, sample in zip(contestants, steps, samples, strict=True):
            time.sleep(SETTLE_S)
            sample.seconds.append(once(contestant, n))
    return samples, others.share()


def within(contestant: Contestant, rounds: int, sample_s: float, budget_s: float) -> Samples:
    """Number of rounds that fit into a budget, at least one: for what is known to be slow."""
    start = time.perf_counter()
    once(contestant)
    if time.perf_counter() - start > budget_s / 2:
        return Samples([once(contestant)])
    steps, samples = steps_for(contestant, sample_s), Samples()
    for _ in range(rounds):
        samples.seconds.append(once(contestant, steps))
        if time.perf_counter() - start > budget_s:
            break
    return samples


@contextmanager
def time_limit(seconds: float, what: str):
    """Raises TimeoutError in the main thread when the block takes longer; 0 for no limit."""

    def stop(signum, frame):
        raise TimeoutError(f"{what}: more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return f"{type(error).__name__}: {first[:200]}"


def heats(
    case: Case,
    expected: Mapping[str, np.ndarray],
    exact: Mapping[str, np.ndarray] | None,
    sample_s: float,
    limit_s: float,
) -> tuple[Contestant, dict[str, Any], tuple[float, str]]:
    """The fastest of the peer's variants, each compared with ours before it is timed.

    A variant that cannot be made, takes longer than `limit_s` to compile and run once, or computes
    something else is left out with the reason. Returns the contestant, variant -> milliseconds or
    reason, and the largest error of those that run.

    Raises:
      Disagreement: no variant runs and agrees with ours.
    """
    best, least, table, worst = None, math.inf, {}, (-1.0, "")
    for variant, make in case.theirs.items():
        try:
            with time_limit(limit_s if variant in case.compiling else 0, "compiling"):
                contestant = make()
                found = contestant.arrays()
                once(contestant)
            worst = max(worst, compare(expected, found, case.dtype, exact))
        except Exception as error:  # a missing compiler, memory, a wrong operator
            table[variant] = reason(error)
            continue
        del found
        took = min(race([contestant], 3, sample_s)[0][0].seconds)
        table[variant] = 1e3 * took
        if took < least:
            best, least = contestant, took
        del contestant
        gc.collect()
    if best is None:
        reasons = "; ".join(f"{variant}: {reason}" for variant, reason in table.items())
        raise Disagreement(f"{case.name}, {case.dtype}: no variant of the peer agrees: {reasons}")
    return best, table, worst


def measure(
    case: Case,
    *,
    mode: str,
    against: str | None,
    rounds: int,
    sample_s: float = 0.05,
    budget_s: float = 20.0,
    limit_s: float = 300.0,
) -> dict[str, Any]:
    """One row: compares, then times ours against the best of theirs, and another mode beside.

    Args:
      case: what to measure.
      mode: our ops mode.
      against: another ops mode for the column beside, or None.
      rounds: timed rounds of each.
      sample_s: a round repeats the step until it has taken this long.
      budget_s: for the other mode, which may be a hundred times slower.
      limit_s: for making and compiling one variant of the peer, of those that compile.
    """
    row = {"group": case.group, "name": case.name, "dtype": case.dtype, "detail": case.detail}
    ours = case.ours(mode)
    expected = ours.arrays()
    exact = case.exact() if case.exact else None
    best, table, (error, tensor) = heats(case, expected, exact, sample_s, limit_s)
    (a, b), others = race([ours, best], rounds, sample_s)
    row |= {
        "ours": a.summary() | ours.notes,
        "theirs": b.summary() | {"variant": best.name},
        "variants_ms": table,
        "ratio": statistics.median(a.seconds) / statistics.median(b.seconds),
        "ratio_of_least": min(a.seconds) / min(b.seconds),
        "relative_error": error,
        "relative_error_tensor": tensor,
        "others_share": others,
    }
    del ours, best
    gc.collect()
    if against:
        try:
            other = case.ours(against)
            compare(expected, other.arrays(), case.dtype, exact)
            samples = within(other, rounds, sample_s, budget_s)
            row["other"] = samples.summary() | other.notes | {"mode": against}
        except Exception as problem:  # a column beside must not stop the benchmark
            row["other"] = {"mode": against, "failed": reason(problem)}
    return row
