"""Notes about files that can be used but are odd."""

import functools
import logging

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=10_000)
def once(text: str) -> None:
    """Logs a warning, once in a process: a file is read again for every stage of a run."""
    logger.warning("%s", text)
