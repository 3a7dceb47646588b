"""The errors a user can act on.

Each message is complete on its own: it names the file or field, what was found, what was expected
and what to do. `launch.py` and `weight_port` print it without a traceback and exit with status 1.
"""

from collections.abc import Iterable

from crossdim_jax.text import shown


class CrossdimError(ValueError):
    """Base of the errors that are the input's fault, not the program's."""


class ConfigError(CrossdimError):
    """A configuration field is unknown, of the wrong type or out of range."""


class WeightsError(CrossdimError):
    """A weight file does not fit the model it is to be loaded into, or is damaged."""


class DataError(CrossdimError):
    """A data file or folder is missing, unreadable or not what it should be."""


class ManyErrors(DataError):
    """Several cases are faulty; all are reported at once.

    Args:
      title: what was being done, and what to do about it.
      failures: `(case id, message)` pairs, at least one.
    """

    def __init__(self, title: str, failures: Iterable[tuple[str, str]]):
        self.failures = list(failures)
        lines = [f"  {n}. {shown(case)}: {why}" for n, (case, why) in enumerate(self.failures, 1)]
        super().__init__("\n".join([f"{title} ({len(lines)} faulty):", *lines]))
