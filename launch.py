"""Trains, evaluates, predicts or reports: `python launch.py --config=FILE --workdir=FOLDER`."""

from crossdim_jax.__main__ import command

if __name__ == "__main__":
    command()
