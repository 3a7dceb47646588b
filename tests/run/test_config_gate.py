"""Every number of every config has a range, and what lies outside is refused before all else."""

import functools
import itertools
import math
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from crossdim_jax import ranges
from crossdim_jax.challenges import get
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.challenges.camus import phantom as camus_phantom
from crossdim_jax.challenges.chaos import phantom as chaos_phantom
from crossdim_jax.data import augment
from crossdim_jax.errors import ConfigError
from crossdim_jax.ranges import Either, Number, Rate, Sequence
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import config_gate, experiment
from crossdim_jax.training import optim, schedules

pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
RANGES = ranges.RANGES | augment.RANGES
FILES = ("brats_dxnet", "brats_dsnet", "camus_omnianet", "chaos_omnianet")
ARGUMENTS = ("", ":demo", ":debug")
CONFIGS = [f"configs/{file}.py{a}" for file, a in itertools.product(FILES, ARGUMENTS)]


@functools.cache
def _read(path):
    return config_lib.read(path)


def read(path):
    return ConfigDict(_read(path).to_dict())  # of one's own, and of any type


def put(config, field, value):
    """Sets a field, there or not, to a value of any type."""
    *sections, name = field.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    if name in config:  # it would keep its type
        del config[name]
    config[name] = value


def leaves(path):
    """Dotted field -> value; fields that hold None with an example of their type."""
    config, flat = _read(path), {}
    for field, value in flatten_dict(config.to_dict(), sep=".").items():
        section, _, name = field.rpartition(".")
        node = config
        for part in section.split(".") if section else ():
            node = node[part]
        flat[field] = node.get_type(name)() if value is None else value
    return flat


@functools.cache
def numeric_fields():
    """Field -> a config that has it, of all that are neither flags nor single strings."""
    return {
        field: path
        for path in CONFIGS
        for field, value in leaves(path).items()
        if not isinstance(value, bool | str)
    }


def test_every_number_of_every_config_has_a_row():
    assert len(numeric_fields()) > 50 and not numeric_fields().keys() - RANGES.keys()


@pytest.mark.parametrize("path", CONFIGS)
def test_every_default_lies_in_its_range(path):
    config_gate.check_fields(read(path).to_dict())


def outside(row):
    """Values that the row refuses, by kind."""
    if isinstance(row, Number):
        (low, high), (left, *_, right) = row.bounds, row.interval
        step = 1 if row.whole else 1e-3
        yield from (low if left == "(" else low - step - abs(low) * 1e-3,)
        yield from (high if right == ")" else high + step + abs(high) * 1e-3,)
        yield from (math.nan, math.inf, -math.inf, 10**400, True, "3", [1])
        yield from () if row.none else (None,)
        yield from (low + 0.5,) if row.whole else ()
        yield from (low + 1,) if row.multiple > 1 else ()
    elif isinstance(row, Sequence):
        some = {3: (64, 64, 64), 2: (64, 64)}
        for count in row.lengths or (1,):
            for value in outside(row.item):
                yield (*some.get(count, (1,))[1:], value)
        yield from ((1,) * (max(row.lengths) + 1), ()) if row.lengths else ()
        yield from () if row.none else (None,)
        yield from (-1.5, math.nan)
    elif isinstance(row, Either):
        yield from (value for value in outside(row.items[0]) if value is not None)
        yield from (1.001, 0.0, -0.5)
    elif isinstance(row, Rate):
        yield from ("a", ("a", 1, 2), ("(", 1))
        yield from (("a", value) for value in outside(row.factor))
    else:
        yield from (1, None, b"x")


@pytest.mark.parametrize("field", sorted(RANGES))
def test_what_lies_outside_is_refused_with_field_value_and_expectation(field, tmp_path):
    path = numeric_fields().get(field, CONFIGS[0])
    for value in outside(RANGES[field]):
        config = read(path)
        put(config, field, value)
        with pytest.raises(ConfigError) as caught:
            experiment.build(config, tmp_path / "run")
        message = str(caught.value)
        assert f"config.{field}=" in message and "expected" in message, value
        shown = list(value) if isinstance(value, tuple) else value
        assert repr(value)[:200] in message or repr(shown)[:200] in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field, text",
    [
        ("optim.sync_period", "-1"),
        ("optim.clip_norm", "-1.0"),
        ("optim.schedule_decay", "-0.004"),
        ("optim.weight_decay", "-1.0"),
        ("optim.b1", "nan"),
        ("optim.b2", "1.0"),
        ("optim.eps", "nan"),
        ("challenge.et_min_mm3", "nan"),
        ("challenge.et_min_mm3", "inf"),
        ("augment.noise", "inf"),
        ("train.epochs", "0"),
        ("data.patch", "(64, -64, 64)"),
        ("data.patch", "(64,)"),
        ("data.patch", "(1000000000, 64, 64)"),
        ("optim.rates", "(('encoder/.*', float('nan')),)"),
        ("optim.rates", "(('encoder/.*', -1.0),)"),
        ("optim.freeze", "('encoder/(',)"),
        ("weights.skip", "('*',)"),
        ("weights.inflate_at", "('blocks_[=center',)"),
        ("data.split.fraction", "1.0"),
        ("seed", "-1"),
        ("seed", "4294967296"),
        ("phantoms.seed", "-1"),
    ],
)
def test_overrides_of_the_command_line_are_refused(field, text, tmp_path):
    if "nan" in text and "(" in text:
        text = text.replace("float('nan')", "1e999 - 1e999")
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")) as caught:
        experiment.build(config_lib.read(CONFIGS[2], [f"--config.{field}={text}"]), tmp_path / "r")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field", sorted(field for field, row in RANGES.items() if isinstance(row, Number) and row.whole)
)
def test_a_fraction_for_a_whole_number_is_refused_on_the_command_line(field):
    if field in numeric_fields():
        with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
            config_lib.read(numeric_fields()[field], [f"--config.{field}=3.5"])


@pytest.mark.parametrize("field", sorted(config_gate.CHOICES))
def test_an_unknown_name_is_refused_with_the_known_ones(field, tmp_path):
    for value in ("nosuch", 3, ("same",)):
        config = read(CONFIGS[0])
        put(config, field, value)
        with pytest.raises(ConfigError) as caught:
            experiment.build(config, tmp_path / "run")
        known = [name for name in config_gate.CHOICES[field] if name]
        assert f"config.{field}={value!r} is unknown" in str(caught.value)
        assert all(name in str(caught.value) for name in known)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", CONFIGS[::3])
def test_every_other_name_is_refused_before_anything_is_read(path, tmp_path):
    """Those that the challenge or the network's variant knows; the weights' file knows its own."""
    known = (*config_gate.CHOICES, *config_gate.PATHS)
    fields = [field for field, value in leaves(path).items() if isinstance(value, str)]
    for field in fields:
        if field in known or field.startswith("weights."):
            continue
        config = config_lib.read(path, [f"--config.{field}=nosuch"])
        with pytest.raises(ConfigError, match="nosuch.*known"):
            experiment.build(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path, overrides, message",
    [
        (0, {"optim.learning_rate_end": 0.1}, "learning_rate_end=0.1: expected at most"),
        (6, {"optim.learning_rate_end": 0.0}, "never come to its end"),
        (6, {"optim.decay_per_epoch": 1.0}, "never come to its end"),
        (0, {"train.epochs": None}, "train.epochs=None: only an exponential"),
        (0, {"optim.name": "adam", "optim.schedule_decay": 0.004}, "belongs to nadam"),
        (0, {"optim.freeze_epochs": 2.0}, "expected patterns in config.optim.freeze"),
        (6, {"data.split.fold": 5}, r"data.split.fold=5: expected 0 to 4"),
        (0, {"data.split.kind": "fixed"}, "case ids in config.data.split.validation"),
        (0, {"train.batch_size": 3, "train.accumulate": 2}, "multiple of accumulate.*such as 4"),
        (6, {"data.foreground": 0.5}, "slices are whole"),
        (6, {"augment.flip": (2,)}, "a patch has the axes 0 to 1"),
        (0, {"data.patch": (65536, 65536, 32)}, "one channel of a batch would have 1.37e"),
        (0, {"data.root": "runs/cache", "data.cache": "runs/../runs/cache"}, "data.root itself"),
        (0, {"data.cache": ""}, "config.data.cache is empty"),
        (0, {"inference.flips": (0, 0)}, "each axis once is expected"),
        (0, {"data.root": "a\0b"}, "data.root='a.x00b': holds a NUL character"),
    ],
)
def test_fields_must_fit_together(path, overrides, message, tmp_path):
    config = read(CONFIGS[path])
    for field, value in overrides.items():
        put(config, field, value)
    with pytest.raises(ConfigError, match=message):
        experiment.build(config, tmp_path / "run")


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    overrides = ["--config.optim.b1=nan", "--config.train.keep=0", "--config.train.loss=dice"]
    with pytest.raises(ConfigError) as caught:
        experiment.build(config_lib.read(CONFIGS[0], overrides), tmp_path)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 fields are wrong:" and len(lines) == 3
    assert {line.split("=")[0].strip() for line in lines} == {
        "config.optim.b1", "config.train.keep", "config.train.loss",
    }  # fmt: skip


def test_parts_that_cannot_be_made_or_do_not_fit_are_said_with_the_fields(tmp_path):
    """Each of them by itself has its test elsewhere; nothing is read or written meanwhile."""
    config = read(CONFIGS[9])
    for field, value in {
        "optim.b1": math.nan,
        "challenge.nosuch": 1,
        "model.drop_rate": 0.1,
        "train.loss": "dice_bce",
        "augment.nosuch": 1,
        "mesh.data": 64,
        "inference.mode": "whole",
        "inference.flips": (0, 0),
    }.items():
        put(config, field, value)
    with pytest.raises(ConfigError) as caught:
        experiment.build(config, tmp_path / "run")
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} fields are wrong:" and not list(tmp_path.iterdir())
    for part in ("optim.b1", "'chaos' has no", "drop_rate", "augment has no", "mesh data"):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert sum("inference." in line for line in lines) == 2 and len(lines) == 7

    put(config := read(CONFIGS[9]), "data.patch", (100, 64))
    put(config, "train.loss", "dice_bce")
    put(config, "train.batch_size", 10)
    put(config, "mesh.data", 4)
    with pytest.raises(ConfigError, match="3 fields are wrong:") as caught:
        experiment.build(config, tmp_path / "run")
    for part in ("multiples of 32", "is for sigmoid outputs", "batch_size=10 does not divide"):
        assert part in str(caught.value)


def test_fields_of_ones_own_and_older_configs_pass():
    config = read(CONFIGS[0])
    config.model.my_width, config.mine = -8, ConfigDict({"factor": math.nan, "note": "two\nlines"})
    del config.train.skip_nonfinite, config.augment, config.data.split.seed
    config_gate.check_fields(config.to_dict())
    config.data.split.seed = -5  # part of a text: any integer will do
    config_gate.check_fields(config.to_dict())


def test_the_run_folder_is_not_the_cases_folder(tmp_path):
    config = config_lib.read(CONFIGS[0], [f"--config.data.root={tmp_path}"])
    with pytest.raises(ConfigError, match="data.root itself"):
        experiment.build(config, tmp_path / "x" / "..")
    with pytest.raises(ConfigError, match="--workdir='a.x00b'"):
        experiment.build(config, "a\0b")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: optim.make(clip_norm=-1.0), "optim.clip_norm=-1.0"),
        (lambda: optim.make(sync_period=-1), "optim.sync_period=-1"),
        (lambda: optim.make(b1=math.nan), "optim.b1=nan"),
        (lambda: optim.make(learning_rate=math.nan), "optim.learning_rate=nan"),
        (lambda: optim.make(rates=(("a", math.inf),)), "optim.rates=.*inf"),
        (
            lambda: schedules.exponential(math.inf, 1.0, decay_per_epoch=0.5, steps_per_epoch=1),
            "inf",
        ),
        (lambda: augment.Settings.of({"noise": math.inf}, 3), "augment.noise=inf"),
        (lambda: augment.Settings.of({"scale": math.nan}, 3), "augment.scale=nan"),
        (lambda: get("brats", et_min_mm3=math.nan), "challenge.et_min_mm3=nan"),
        (lambda: phantom.make and phantom.ensure("x", 1, spacing_mm=(1, 1, math.nan)), "spacing"),
        (lambda: camus_phantom.ensure("x", 1, pixel_mm=math.nan), "phantoms.pixel_mm=nan"),
        (lambda: chaos_phantom.ensure("x", 0), "phantoms.n=0"),
    ],
)
def test_the_library_refuses_the_same_numbers(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
    assert not Path("x").exists()
