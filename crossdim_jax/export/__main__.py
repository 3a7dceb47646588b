"""Segments by an exported model: `crossdim-predict MODEL INPUT OUTPUT`, or `python -m` of this."""

import sys

from crossdim_jax.runtime import stop


def main() -> None:
    """Entry point: answers signals at once, and says which package is missing, if one is."""
    stop.install()
    try:
        from crossdim_jax.export import runner
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: crossdim-predict needs {error.name}, which is not installed: "
            "pip install -r MODEL/requirements.txt"
        )
    sys.exit(runner.command())


if __name__ == "__main__":
    main()
