"""The command line: its flags, and which mode they ask for."""

import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from crossdim_jax.errors import ConfigError, CrossdimError
from crossdim_jax.report import compare
from crossdim_jax.run import (
    auto_fields,
    config,
    evaluate,
    experiment,
    export,
    folds,
    plan,
    predict,
    study,
    train,
    view,
)
from crossdim_jax.runtime import compile_cache, distributed, memory
from crossdim_jax.storage import files
from crossdim_jax.text import for_stream, make_visible

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE[:argument].")
WORKDIR = flags.DEFINE_string("workdir", "", "The run folder; report: several, with commas.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "folds", "evaluate", "predict", "report", "plan", "view", "export", "study"],
    "train ends with evaluation and the report; folds trains all folds and scores them together; "
    "plan shows the plan of a data set, or says what training would take; view writes a page for "
    "each case, to scroll through it; export writes the trained networks as ONNX, with all that "
    "using them needs; study trains the runs of --study and compares them.",
)
STUDY = config_flags.DEFINE_config_file(
    "study", None, "study, plan: the study, FILE[:argument], such as configs/studies/transfer.py."
)
PART = flags.DEFINE_string(
    "study_part", "", "study: I/N, the I-th of N parts of the runs, from 0/N; they may run at once."
)
INPUT = flags.DEFINE_string("input", "", "predict, view: a folder of cases, labelled or not.")
OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "predict, export, report of several: where to write; view: predictions of the input.",
)
LICENCE = flags.DEFINE_string("licence", "", "export: the model's licence, such as CC-BY-4.0.")
BUDGET = flags.DEFINE_float(
    "budget_gib", None, "plan: measures a step, for a device of so much memory; what it has."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "predict: also cases that are already there.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several hosts.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, with --coordinator.")


def main(argv: list[str]) -> None:
    """One call into the library."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if MODE.value == "report" and "," in WORKDIR.value:  # which says all that is needed
        path = compare.write(WORKDIR.value.split(","), OUTPUT.value)
        return print(for_stream(str(path), sys.stdout))
    if MODE.value == "report" and study.is_study(WORKDIR.value):  # its protocol does
        return print(for_stream(str(study.report(WORKDIR.value)), sys.stdout))
    if STUDY.value is not None and MODE.value not in ("study", "plan"):
        raise app.UsageError(
            f"--study is for --mode=study or --mode=plan, found --mode={MODE.value}; leave it out "
            "to make a single run"
        )
    if CONFIG.value is None:
        raise app.UsageError("--config=FILE is needed, such as --config=configs/brats_dxnet.py")
    logging.set_verbosity(logging.WARNING)  # all libraries': absl's handler serves the root logger
    make_visible(logging.get_absl_handler())
    compile_cache.cache_compiled_programs()
    memory.give_back_after_compiling()
    distributed.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    defaults = config.read(file).to_dict()
    if MODE.value == "study" or (MODE.value == "plan" and STUDY.value is not None):
        return distributed.say(_study(defaults))
    job = experiment.build(
        CONFIG.value,
        WORKDIR.value,
        defaults=defaults,
        trains=MODE.value in ("train", "folds", "plan"),
        folds=MODE.value == "folds",
    )
    if MODE.value == "predict":
        told = predict.run(job, INPUT.value, OUTPUT.value, overwrite=OVERWRITE.value)
    elif MODE.value == "view":
        told = view.run(job, INPUT.value, OUTPUT.value)
    elif MODE.value == "export":
        told = export.run(job, OUTPUT.value, licence=LICENCE.value)
    elif MODE.value == "plan":
        told = _plan(job)
    else:
        run = {
            "train": train.run,
            "folds": folds.run,
            "evaluate": evaluate.run,
            "report": evaluate.report,
        }[MODE.value]
        told = run(job)
    distributed.say(str(told))


def _study(defaults: Mapping[str, Any]) -> str:
    """Makes the runs of a study and its page, or says what they take."""
    if STUDY.value is None:
        raise app.UsageError("--study=FILE is needed, such as --study=configs/studies/transfer.py")
    call = study.plan if MODE.value == "plan" else study.run
    return str(
        call(
            CONFIG.value,
            WORKDIR.value,
            STUDY.value.to_dict(),
            defaults=defaults,
            part=PART.value,
        )
    )


def _plan(job: experiment.Experiment) -> str:
    """The plan that the data set was given, else what a training takes on this device."""
    recorded = "" if job.planned else auto_fields.recorded_plan(job.workdir)
    if BUDGET.value is None and (job.planned or recorded):  # a new one has been said
        more = "--budget_gib=GIB measures what a training by this plan takes on this device"
        return "\n".join(filter(None, [recorded, more]))
    return plan.run(job, budget_gib=BUDGET.value)


def parse(argv: list[str]) -> list[str]:
    """Flags and config from the command line; raises ConfigError, one line for what is wrong."""
    try:
        rest = flags.FLAGS(config.located(argv))
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that is not there is only noticed when it is used
        if STUDY.value is not None:
            STUDY.value.to_dict()
        return rest
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(f"{config.problem(error)} (--helpfull lists the flags)") from error


def command() -> None:
    """Runs the command line of this process; an error of the user's ends it in one message."""
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):  # what --help shows
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    with files.output():
        try:
            app.run(main, flags_parser=parse)
        except CrossdimError as error:
            distributed.give_up(f"error: {error}")
