"""Records of weight files that were written by other versions of this project."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax.errors import WeightsError


def required(record: Mapping[str, Any], fields: Sequence[str], name: str) -> None:
    """Raises WeightsError unless the record has all of these fields.

    Args:
      record: the metadata of a weight file.
      fields: that what follows reads.
      name: of the file, for the message.
    """
    if missing := [field for field in fields if record.get(field) is None]:
        raise WeightsError(
            f"{name}: its record has no {', '.join(missing)}; it is of an older version. Port it "
            f"again: python -m weight_port {record.get('id') or 'NAME'}"
        )
