"""Trains, evaluates, predicts or reports: `python launch.py --config=FILE --workdir=FOLDER`."""

import os
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from crossdim_jax import config, experiment, memory, modes
from crossdim_jax.errors import ConfigError, CrossdimError

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE[:argument].")
WORKDIR = flags.DEFINE_string("workdir", "", "The run folder; running again goes on there.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "report"],
    "train ends with evaluation and the report.",
)
INPUT = flags.DEFINE_string("input", "", "predict: a folder of cases, with or without labels.")
OUTPUT = flags.DEFINE_string("output", "", "predict: where to write; default in the run folder.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "predict: also cases that are already there.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several hosts.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, with --coordinator.")


def start_distributed() -> None:
    """Joins the other processes, when flags or a launcher's environment say there are some."""
    if COORDINATOR.value:
        if PROCESSES.value is None or PROCESS.value is None:
            raise ConfigError("--coordinator needs --processes and --process as well")
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif any(
        int(os.environ.get(name) or 1) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    ) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


def main(argv: list[str]) -> None:
    """One call into the library."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is needed, such as --config=configs/brats_dxnet.py")
    experiment.quiet_libraries()
    experiment.cache_compiled_programs()
    memory.give_back_after_compiling()
    start_distributed()
    job = experiment.build(CONFIG.value, WORKDIR.value)
    if MODE.value == "predict":
        path = modes.run_prediction(job, INPUT.value, OUTPUT.value, overwrite=OVERWRITE.value)
    else:
        run = {
            "train": modes.run_training,
            "evaluate": modes.run_evaluation,
            "report": modes.run_report,
        }[MODE.value]
        path = run(job)
    experiment.say(str(path))


def parse(argv: list[str]) -> list[str]:
    """Flags and config; what is wrong with them is said in one line."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that is not there is only noticed when it is used
        return rest
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(f"{config.problem(error)} (--helpfull lists the flags)") from error


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except CrossdimError as error:
        sys.exit(f"error: {error}")
