"""Damaged files, thousands a format: a reader returns or raises an error that names the file.

A test module holds a table `FORMATS` of `Format`s and a test under `@few_and_thousands(FORMATS)`
that calls `run(__name__, name, ...)`. The files are read in a child process, which may use little
memory and time; what fails is kept.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from crossdim_jax.errors import CrossdimError

SECONDS_PER_FILE = 2.0
MEGABYTES = 192  # of address space, beyond what the process has once it has read every seed
_INTEGERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 352, 1 << 15, (1 << 16) - 1, 1 << 24, 1 << 30)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 0.5, 352.5, 1e9, 1e38, 1e300)
_REALS += (float("nan"), float("inf"), float("-inf"))
_WORDS = b"0 -1 1 255 65536 2147483648 99999999999999999999 1e300 -1e300 1e-300 nan inf -inf x"
_WORDS = (*_WORDS.split(), b"", b"../x", b"/dev/zero", b"\x00", b"\xff\xfe")
_HEAD = 600  # bytes at the beginning, in which most of what is changed lies


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of a table of formats.

    Attributes:
      name: of the row.
      suffix: of its files, such as ".nii".
      seeds: makes the contents of some small good files; given an empty folder to write in.
      read: reads one file.
      wrap: what is done to a changed content before it is a file, such as compression.
      folder: True where a message may name the folder of the file instead of the file.
      few: changed files that `make test` reads; `make test-all` reads thousands.
    """

    name: str
    suffix: str
    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = bytes
    folder: bool = False
    few: int = 50


def few_and_thousands(formats: Sequence[Format]) -> pytest.MarkDecorator:
    """Decorator of a test that takes `name, count, seed` and hands them to `run`."""
    few = [pytest.param(row.name, row.few, 0, id=row.name) for row in formats]
    thousands = [
        pytest.param(row.name, 10_000, 1, id=f"{row.name}-thousands", marks=pytest.mark.slow)
        for row in formats
    ]
    return pytest.mark.parametrize(("name", "count", "seed"), few + thousands)


def mutations(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` changed contents, always the same for the same arguments."""
    source = random.Random(seed)
    for _ in range(count):
        content = bytearray(source.choice(seeds))
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            source.choice(_CHANGES)(source, content, seeds)
        yield bytes(content)


def _place(source: random.Random, content: bytearray) -> int:
    """An offset, mostly in the header."""
    end = len(content) if source.random() < 0.25 else min(len(content), _HEAD)
    return source.randrange(end) if end else 0


def _bit(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    if content:
        content[_place(source, content)] ^= 1 << source.randrange(8)


def _byte(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    if content:
        content[_place(source, content)] = source.choice((0, 1, 127, 128, 254, 255))


def _number(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    """A binary number that is the smallest, the greatest or odd, where one may be."""
    code = source.choice("bhiqfd")
    if code in "fd":
        value = source.choice(_REALS)
        if code == "f" and abs(value) > 1e38:
            value = float("inf")
    else:
        bits = 8 * struct.calcsize(code)
        value = source.choice((*_INTEGERS, (1 << bits) - 1, (1 << (bits - 1)) - 1))
        value = value * source.choice((1, -1)) & ((1 << bits) - 1)
        code = code.upper()
    number = struct.pack(source.choice("<>") + code, value)
    begin = _place(source, content) // len(number) * len(number)
    content[begin : begin + len(number)] = number


def _word(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    """A number or a word of a text replaced."""
    places = [found.span() for found in re.finditer(rb"[-+.\w]+", content[:4096])]
    if places:
        begin, end = source.choice(places)
        content[begin:end] = source.choice(_WORDS)


def _cut(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    del content[_place(source, content) :]


def _remove(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    begin = _place(source, content)
    del content[begin : begin + source.choice((1, 4, 16, 100))]


def _insert(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    begin = _place(source, content)
    content[begin:begin] = source.randbytes(source.choice((1, 4, 16, 100)))


def _duplicate(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    begin, to = _place(source, content), _place(source, content)
    content[to:to] = content[begin : begin + source.choice((4, 16, 100, 1000))]


def _splice(source: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    """The beginning of one file and the end of another."""
    other = source.choice(seeds)
    content[_place(source, content) :] = other[_place(source, bytearray(other)) :]


_CHANGES = (
    _bit,
    _byte,
    _number,
    _number,
    _word,
    _word,
    _cut,
    _remove,
    _insert,
    _duplicate,
    _splice,
)


def check(
    read: Callable[[Path], object], path: Path, content: bytes, *, folder: bool = False
) -> str:
    """What is wrong with how `read` takes a file of that content; "" if nothing is.

    It may return, or raise a CrossdimError whose message names the file (the folder, if `folder`).
    An error that comes from a lack of memory is wrong: more was asked for than such a file holds.
    """
    path.write_bytes(content)
    try:
        read(path)
    except CrossdimError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return f"asked for too much memory: {error}"
            cause = cause.__cause__ or cause.__context__
        named = str(path.parent if folder else path)
        return "" if named in str(error) else f"the message does not name {named}: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return f"raised {type(error).__name__}: {error}\n{where}"
    return ""


def run(module: str, name: str, folder: Path, *, count: int, seed: int = 0) -> None:
    """Reads `count` changed files of one row in a child process; raises AssertionError on faults.

    Args:
      module: whose table `FORMATS` has the row, `__name__`.
      name: of the row.
      folder: empty; what failed is kept there.
      count, seed: see `mutations`.
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", __name__, module, name, str(folder), str(count), str(seed)],
        cwd=root,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60 + 0.5 * count,
    )
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0 and f"{count} files read" in done.stdout, said


def run_guided(module: str, name: str, folder: Path, *, runs: int) -> None:
    """As `run`, with files made by a coverage-guided fuzzer; skipped where there is none."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris, the coverage-guided fuzzer, is not installed")
    command = [sys.executable, "-m", "tests.fuzz.guided", module, name, str(folder)]
    done = subprocess.run(
        [*command, f"-atheris_runs={runs}", "-seed=1"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120 + 0.1 * runs,
    )
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0 and f"Done {runs}" in said, said


class TooSlow(BaseException):
    """No `except Exception` of a reader stops it."""


def _limit(megabytes: int) -> None:
    """Bounds the address space; does nothing where the system does not tell its size."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    size = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _alarm(signum: int, frame: object) -> None:
    raise TooSlow(f"after {SECONDS_PER_FILE} seconds")


def main(module: str, name: str, folder: str, count: str, seed: str) -> int:
    """The child process: prints the faults, and in the end how many files were read."""
    (row,) = (row for row in importlib.import_module(module).FORMATS if row.name == name)
    place = Path(folder)
    (place / "seeds").mkdir()
    seeds = list(row.seeds(place / "seeds"))
    path, faults = place / f"changed{row.suffix}", []
    warnings.simplefilter("error")
    for content in seeds:
        path.write_bytes(row.wrap(content))
        row.read(path)  # good files: an error here is the table's
    _limit(MEGABYTES)
    signal.signal(signal.SIGALRM, _alarm)
    for number, content in enumerate(mutations(seeds, int(count), int(seed))):
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FILE)
        fault = check(row.read, path, row.wrap(content), folder=row.folder)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if fault:
            kept = place / f"fault_{number:05d}{row.suffix}"
            path.replace(kept)
            faults.append(f"{kept}: {fault}")
    print("\n".join(faults[:10]))
    print(json.dumps({"faults": len(faults)}), f"{count} files read")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
