"""Files written whole or not at all, and durations for people to read."""

import contextlib
import os
import select
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from crossdim_jax.errors import CrossdimError, DataError
from crossdim_jax.runtime import stop
from crossdim_jax.text import encoded

# Remedies of a file that cannot be written.
ROOM = "see that the folder can be written and its disk has room"
ANOTHER_FOLDER = f"{ROOM}, or choose another folder"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Context manager that gives the name of a temporary file, which replaces `path` at the end.

    A reader, or a crash, sees the old file or the new; an error within leaves the old one. The
    temporary name is hidden, ends as `path` does (some libraries go by that), and is unique: two
    processes may write the same file. The folder must exist. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{''.join(path.suffixes[-2:])[-16:]}")

    def remove() -> None:
        with contextlib.suppress(OSError):  # what went wrong before has more to say
            temporary.unlink()

    with stop.at_the_end(remove):
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a text file so that a reader, or a crash, sees the old text or the new.

    UTF-8; see `text.encoded`. The folder must exist. Raises OSError.
    """
    write_bytes(path, encoded(text))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """`write_text` for bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def writing(
    path: str | os.PathLike,
    what: str = "",
    *,
    remedy: str = ROOM,
    kind: type[CrossdimError] = DataError,
) -> Iterator[None]:
    """Context manager around writing: raises an OSError as one that a user can act on.

    Args:
      path: the file or folder that is written.
      what: what it is, such as "the report".
      remedy: what to do about it.
      kind: of the error.
    """
    try:
        yield
    except OSError as error:
        subject = f"{what} cannot be written" if what else "cannot be written"
        raise kind(f"{path}: {subject} ({error.strerror or error}); {remedy}") from error


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Context manager around a command: where the reader of its output is gone, as in
    `... | head`, it ends silently with status 141, as commands do.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # What is still to be written would be complained of at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _nobody_reads() -> bool:
    """True if it is the output that is broken, and not the pipe to a worker."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def duration(seconds: float) -> str:
    """Formats seconds as "7 s", "20 min 07 s" or "3 h 05 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
