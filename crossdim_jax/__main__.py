"""Trains, evaluates, predicts or reports: `python -m crossdim_jax --config=FILE --workdir=FOLDER`.

`python launch.py` in a clone and the installed command `crossdim` are the same.
"""

from crossdim_jax.runtime import stop


def command() -> None:
    """Entry point: answers signals at once, then imports the rest, which takes seconds."""
    stop.install()
    from crossdim_jax.run import launch

    launch.command()


if __name__ == "__main__":
    command()
