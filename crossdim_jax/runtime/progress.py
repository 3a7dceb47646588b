"""The progress bar: live on a terminal, a line now and then in a log file."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

import tqdm


def bar(
    items: Iterable | None = None,
    *,
    description: str,
    unit: str = "case",
    enabled: bool = True,
    terminal_only: bool = False,
    stream: TextIO | None = None,
    **options: Any,
) -> tqdm.tqdm:
    """Progress bar over `items`, or, without them, one to be updated by hand.

    Args:
      items: the work; None if the bar is moved by `update`, with `total` among the options.
      description: shown in front of the bar.
      unit: name of one item.
      enabled: False shows nothing.
      terminal_only: True shows nothing in a log file either.
      stream: default stderr.
      **options: of `tqdm.tqdm`.
    """
    stream = stream or sys.stderr
    live = stream.isatty()
    return tqdm.tqdm(
        items,
        desc=description,
        unit=unit,
        file=stream,
        mininterval=0.2 if live else 30.0,
        disable=not enabled or (terminal_only and not live),
        **options,
    )
