"""Ranges of a config's fields: one table, dotted field -> range, and the check against it.

Library functions that take the same numbers check them here, too (`check`), so that a range is
written down once. A field without a row is not looked at: configs of one's own may have more.
"""

import dataclasses
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from crossdim_jax.errors import ConfigError

COUNT = 10**6  # more epochs, steps or files than anybody wants; above it, a slip
UINT32 = 2**32 - 1
HUGE = 1e30  # as an upper end: any number that float32 can work with


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number in an interval; a bool is none.

    Attributes:
      interval: in mathematical notation, "[0, 1)": both ends finite, a round bracket excludes one.
      whole: whether it must be an integer.
      unit: what the number is, for the message.
      none: whether None is allowed as well.
      also: single values that are allowed outside the interval.
      multiple: of what an integer must be a multiple.
    """

    interval: str
    whole: bool = False
    unit: str = ""
    none: bool = False
    also: tuple[int, ...] = ()
    multiple: int = 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The lower and the upper end."""
        low, high = self.interval[1:-1].split(",")
        return tuple(int(end) if self.whole else float(end) for end in (low, high))

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else."""
        if not self.holds(value):
            yield self.expected

    def holds(self, value: Any) -> bool:
        """True if the value is allowed."""
        if value is None:
            return self.none
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        if value in self.also:
            return True
        (low, high), ends = self.bounds, self.interval[0] + self.interval[-1]
        inside = low <= value <= high  # false for NaN
        inside &= (ends[0] == "[" or value > low) and (ends[1] == "]" or value < high)
        return inside and (self.multiple == 1 or value % self.multiple == 0)

    @property
    def expected(self) -> str:
        """Description in words: "a whole number, 1 or more, at most 1024"."""
        (low, high), ends = self.bounds, self.interval[0] + self.interval[-1]
        parts = ["a whole number" if self.whole else "a finite number"]
        parts.append(f"{low:.12g} or more" if ends[0] == "[" else f"above {low:.12g}")
        if high < HUGE:
            parts.append(f"at most {high:.12g}" if ends[1] == "]" else f"below {high:.12g}")
        if self.multiple > 1:
            parts.append(f"a multiple of {self.multiple}")
        others = "".join(f", or {value}" for value in (*self.also, *([None] if self.none else [])))
        return ", ".join(parts) + others + (f" ({self.unit})" if self.unit else "")


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A sequence of such values, or None if `none`.

    Attributes:
      item: a row for each.
      lengths: how many there may be; () for any number.
      alone: whether one value may stand for all.
      flag: whether it may be True or False instead.
    """

    item: Any
    lengths: tuple[int, ...] = ()
    none: bool = False
    alone: bool = False
    flag: bool = False

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else."""
        if (value is None and self.none) or (isinstance(value, bool) and self.flag):
            return
        if isinstance(value, list | tuple):
            if self.lengths and len(value) not in self.lengths:
                yield self.expected
                return
            found = dict.fromkeys(text for item in value for text in self.item.problems(item))
            yield from (f"{self.expected}; each {text}" for text in found)
        elif not (self.alone and not any(self.item.problems(value))):
            yield self.expected

    @property
    def expected(self) -> str:
        """Description in words."""
        many = f" of {' or '.join(map(str, self.lengths))} values" if self.lengths else ""
        others = f"{', or one value for all' * self.alone}{', or None' * self.none}"
        return f"a sequence{many}{others}{', or True or False' * self.flag}"


@dataclasses.dataclass(frozen=True)
class Either:
    """A value of one of several kinds.

    Attributes:
      items: a row for each.
    """

    items: tuple[Any, ...]

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else."""
        if all(any(item.problems(value)) for item in self.items):
            yield "; or ".join(item.expected for item in self.items)


class Text:
    """A string."""

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else."""
        if not isinstance(value, str):
            yield "a string in quotes"


class Pattern(Text):
    """A regular expression."""

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else, or why it does not compile."""
        yield from super().problems(value)
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                yield f"a regular expression, which {value!r} is not ({error})"


class ModePattern(Pattern):
    """A choice of an inflation mode, "PATTERN=MODE"."""

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else, or why it does not compile."""
        if not isinstance(value, str) or not all(value.rpartition("=")[::2]):
            yield "a string PATTERN=MODE, such as 'blocks_[56]_.*=center'"
        else:
            yield from super().problems(value.rpartition("=")[0])


@dataclasses.dataclass(frozen=True)
class Rate:
    """A pair of a pattern and a number."""

    factor: Number

    def problems(self, value: Any) -> Iterator[str]:
        """Yields what is expected, if the value is something else, or why it does not compile."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            yield "a pair of a pattern and a factor, such as ('net2d/.*', 0.1)"
        else:
            yield from Pattern().problems(value[0])
            yield from (f"factor {text}" for text in self.factor.problems(value[1]))


def whole(interval: str, unit: str = "", **more: Any) -> Number:
    """A row for an integer, see `Number`."""
    return Number(interval, True, unit, **more)


def real(interval: str, unit: str = "", **more: Any) -> Number:
    """A row for a number, see `Number`."""
    return Number(interval, False, unit, **more)


def each(item: Any, *lengths: int, **more: Any) -> Sequence:
    """A row for a sequence, see `Sequence`."""
    return Sequence(item, lengths, **more)


_COUNT = f"[1, {COUNT}]"
_UINT32 = f"[0, {UINT32}]"
# Decays of moments: float32, in which they are used, rounds what is nearer to 1 to 1.
_DECAY = "[0, 0.999999]"
# Added to denominators: float32 has no smaller numbers in full precision.
_EPS = "[1e-30, 1]"

RANGES: dict[str, Any] = {
    "seed": whole(_UINT32),
    "fold": whole(f"[0, {COUNT}]"),
    # ----- data
    "data.patch": each(whole("[1, 65536]", "voxels"), 2, 3),
    "data.foreground": real("[0, 1]", "a probability"),
    "data.cases": Either((whole(_COUNT, "cases"), real("(0, 1]", "of the cases", none=True))),
    "data.num_threads": whole("[0, 1024]"),
    "data.num_processes": whole("[0, 1024]"),
    "data.grid_tolerance_mm": real("(0, 1000]", "mm", none=True),
    "data.split.fraction": real("[0, 1)", "of the patients"),
    "data.split.test": real("[0, 1)", "of the patients"),
    "data.split.folds": whole(f"[2, {COUNT}]"),
    "data.split.fold": whole(f"[0, {COUNT}]"),
    "data.split.seed": whole("[-9223372036854775808, 9223372036854775807]"),  # part of a text
    "data.split.validation": each(Text(), none=True),
    # ----- challenge
    "challenge.modalities": each(Text(), none=True),
    "challenge.formats": each(Text(), alone=True),
    "challenge.et_min_mm3": real("[0, 1e9]", "mm^3"),
    # ----- phantoms
    "phantoms.n": whole("[1, 9999]", "phantoms"),
    "phantoms.seed": whole(_UINT32),
    # Below 24 there is no room for a tumour beside the ventricles.
    "phantoms.shape": each(whole("[24, 1024]", "voxels"), 3),
    "phantoms.spacing_mm": each(real("[0.001, 1000]", "mm"), 3),
    "phantoms.size": whole("[48, 4096]", "pixels", multiple=8),
    "phantoms.pixel_mm": real("[0.01, 2]", "mm"),
    "phantoms.n_frames": whole("[2, 1000]"),
    # ----- model
    "model.encoder_eps": real(_EPS, none=True),
    "model.drop_path_rate": real("[0, 1)", "a probability", none=True),
    "model.stem_width": whole("[0, 65536]", "channels"),
    "model.widths": each(whole("[1, 65536]", "channels")),
    "model.depth_kernels": each(whole("[1, 99]", "taps"), none=True, alone=True),
    "model.depth_strides": each(whole("[1, 2]"), none=True, alone=True),
    # ----- weights
    "weights.inflate_at": each(ModePattern()),
    "weights.reestimate": whole(f"[0, {COUNT}]", "patches", none=True),
    "weights.skip": each(Pattern()),
    "weights.ignore": each(Text()),
    # ----- augment; further rows in data/augment.py
    "augment.probability": real("[0, 1]", "a probability"),
    "augment.flip": each(whole("[0, 2]", "an axis")),
    # ----- optim
    "optim.learning_rate": real("(0, 1e6]"),
    "optim.learning_rate_end": real("[0, 1e6]"),
    "optim.constant_epochs": real(f"[0, {COUNT}]", "epochs"),
    "optim.decay_per_epoch": real("(0, 1]", "times in each epoch"),
    "optim.b1": real(_DECAY),
    "optim.b2": real(_DECAY),
    "optim.eps": real(_EPS),
    "optim.schedule_decay": real("[0, 1000]", none=True),
    "optim.sync_period": whole(f"[0, {COUNT}]", "steps, 0 for no lookahead", none=True),
    "optim.slow_step_size": real("(0, 1]"),
    "optim.clip_norm": real("[0, 1e30]", "0 for none", none=True),
    "optim.weight_decay": real("[0, 1e6]"),
    "optim.decay": each(Pattern()),
    "optim.freeze": each(Pattern()),
    "optim.freeze_epochs": real(f"(0, {COUNT}]", "epochs", none=True),
    "optim.rates": each(Rate(real("[0, 1e6]"))),
    # ----- train
    "train.epochs": whole(_COUNT, "epochs, whose length train.steps_per_epoch may say", none=True),
    "train.steps_per_epoch": whole(_COUNT, "steps", none=True),
    "train.batch_size": whole(_COUNT, "patches"),
    "train.accumulate": whole(_COUNT),
    "train.validate_from_dice": real("[0, 1]", "a Dice score"),
    "train.validate_every_epochs": whole(_COUNT, "epochs"),
    "train.early_stop_epochs": whole(_COUNT, "epochs", none=True),
    "train.skip_nonfinite": whole(f"[0, {COUNT}]", "steps"),
    "train.log_every_steps": whole("[1, 2147483647]", "steps"),
    "train.checkpoint_every_steps": whole(
        "[0, 2147483647]", "steps, 0 for the end alone", none=True
    ),
    "train.keep": whole(_COUNT, "checkpoints"),
    # ----- plan
    "plan.memory_gib": real("(0, 1e6]", "GiB"),
    "plan.steps": whole("[1, 1000000000]", "steps", none=True),
    "plan.minutes": real("(0, 1e6]", "minutes", none=True),
    "plan.voxels_per_second": real("(0, 1e12]", "voxels", none=True),
    # ----- mesh and inference
    "mesh.data": whole(_COUNT, "devices", also=(-1,)),
    "mesh.depth": whole(_COUNT, "devices"),
    "inference.overlap": real("[0, 1)", "of a window"),
    "inference.flips": each(whole("[0, 2]", "an axis"), flag=True),
    "inference.window_batch": whole(_COUNT, "windows"),
}


def problems(
    values: Mapping[str, Any], further: Mapping[str, Any] = MappingProxyType({})
) -> list[tuple[str, str]]:
    """(field, what is wrong) of all values that are outside their range.

    values: dotted field -> value; those without a row are not looked at. further: rows beside
    `RANGES`.
    """
    rows = RANGES | further
    return [
        (field, f"config.{field}={_show(value)}: expected {text}")
        for field, value in values.items()
        if field in rows
        for text in rows[field].problems(value)
    ]


def check(section: str, /, **values: Any) -> None:
    """Raises ConfigError unless the values of a section are within their ranges; names all.

    For functions of the library that take what a config's section says: `check("optim", b1=b1)`.
    """
    refuse(text for _, text in problems({f"{section}.{k}": v for k, v in values.items()}))


def refuse(found: Iterable[str]) -> None:
    """Raises ConfigError with all that was found, if anything was."""
    found = list(found)
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError(f"{len(found)} fields are wrong:\n  " + "\n  ".join(found))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
