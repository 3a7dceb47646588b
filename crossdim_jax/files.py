"""Files written whole or not at all, and durations for people to read."""

import os
import uuid
from pathlib import Path

from crossdim_jax import stop


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a text file so that a reader, or a crash, sees the old text or the new.

    The folder must exist. Raises OSError.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """`write_text` for bytes."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with stop.at_the_end(lambda: temporary.unlink(missing_ok=True)):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def duration(seconds: float) -> str:
    """As "7 s", "20 min 07 s" or "3 h 05 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
