"""Which weights of a run count, and how long its epochs are."""

import json
import re
import types

import jax
import numpy as np
import pytest

from crossdim_jax.challenges.brats import phantom
from crossdim_jax.errors import DataError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import ensemble, evaluate, experiment, train, view, weights_of_run
from crossdim_jax.storage import run_folder
from crossdim_jax.training import checkpoint, finish
from tests import small_run, toy

FIELDS = {
    "data.split.validation": ("Phantom_004",),
    "train.steps_per_epoch": 3,
    "train.validate_every_epochs": 2,
    "train.batch_size": 1,
}
# ml_collections 1.1 reads config files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Experiments in run folders of a name, on ten cases."""
    folder = tmp_path_factory.mktemp("runs")
    cases = phantom.generate(folder / "cases", 5, shape=(24, 24, 24)) and folder / "cases"

    def make(name, epochs=3, **fields):
        config = small_run.config(cases, folder / "cache", epochs, **FIELDS | fields)
        return experiment.build(config, folder / name, defaults=config.to_dict())

    with toy.registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.page, "write", lambda workdir, *_: workdir)  # takes the longest
        yield make


@pytest.fixture(scope="module")
def runs(make):
    """Finished runs that differ in what is chosen: "best" or "last"."""
    made = {name: make(name, **{"train.choose": name}) for name in ("best", "last")}
    for one in made.values():
        train.run(one)
    return made


def provenance(workdir):
    return json.loads((workdir / "evaluation" / "summary.json").read_text())["provenance"]


def test_last_keeps_no_best_and_validates_for_the_curve_only(runs):
    """The same steps; nine of them are three epochs of three."""
    logs = {name: toy.read_metrics(one.workdir) for name, one in runs.items()}
    validated = {
        name: [row["step"] for row in log if row["kind"] == "validation"]
        for name, log in logs.items()
    }
    assert validated == {"best": [6, 9], "last": [6]}
    trained = {
        name: [(r["step"], r["epoch"], r["loss"]) for r in log if r["kind"] == "train"]
        for name, log in logs.items()
    }
    assert trained["best"] == trained["last"] and trained["last"][-1][:2] == (9, 3.0)
    folders = {name: one.workdir / "checkpoints/best" for name, one in runs.items()}
    assert not list(folders["last"].iterdir()) and list(folders["best"].iterdir())


def test_what_is_chosen_is_used_and_named(runs):
    """Also of a run that has both, whatever it was trained with."""
    expected = checkpoint.load_variables(runs["last"].workdir, best=False)
    variables, record = runs["last"].trained()
    np.testing.assert_array_equal(
        variables["params"]["head"]["kernel"], expected[0]["params"]["head"]["kernel"]
    )
    assert record["step"] == 9
    best = checkpoint.load_variables(runs["best"].workdir)[1]["step"]
    for name, step in (("best", best), ("last", 9)):
        one = runs[name]
        made = provenance(one.workdir)
        assert (made["checkpoint"], made["checkpoint_step"]) == (name, step)
        assert ensemble.predictor(one)[1] == f"the {name} weights, of step {step}"
        scores = view._scores(one.workdir, ("WT",))["Phantom_004"]
        assert scores.startswith(f"Dice (%) (the {name} weights): WT ")


def test_the_choice_may_change_and_a_start_of_another_run_takes_it(runs, make, monkeypatch):
    other = make("best", **{"train.choose": "last"})
    other.claim(write=False)
    assert checkpoint.which(other.trained()[1]) == "last"
    asked = []
    monkeypatch.setattr(weights_of_run.models, "build", lambda *_, **__: None)
    monkeypatch.setattr(
        checkpoint, "load_variables", lambda workdir, *, best: asked.append(best) or 1 / 0
    )
    for name in ("best", "last"):
        with pytest.raises(ZeroDivisionError):
            weights_of_run.load(runs[name].workdir)
    assert asked == [True, False]


def test_a_fraction_of_an_epoch_is_refused_by_naming_the_field_that_gives_it():
    with pytest.raises(config_lib.ConfigError, match=r"train.epochs=3.75.*train.steps_per_epoch"):
        config_lib.read("configs/brats_dxnet.py:debug", ["--config.train.epochs=3.75"])


def test_runs_that_differ_in_seed_length_or_rate_compile_once(runs, make, caplog):
    """Training, validation, evaluation; the last has a schedule of its own, of a few numbers."""

    def compiled(name, **fields):
        caplog.clear()
        with jax.log_compiles():
            train.run(make(name, **fields))
        found = (re.match(r"Compiling (?:jit\()?(\w+)", r.getMessage()) for r in caplog.records)
        return {match[1] for match in found if match}

    assert compiled("seed", seed=7) == set()
    assert compiled("rate", epochs=2, **{"optim.learning_rate": 2e-2}) == {"numbers"}
    first, other = (
        toy.read_metrics(runs["best"].workdir.parent / name)[0] for name in ("best", "seed")
    )
    assert first["step"] == other["step"] and first["loss"] != other["loss"]


@pytest.mark.parametrize("choose", ["best", "last"])
def test_a_finished_run_keeps_one_set_of_weights_and_is_not_trained_again(
    runs, make, monkeypatch, choose
):
    """Nothing is left of its checkpoints but the weights that were evaluated."""
    fields = {"train.choose": choose, "train.keep_state": False, "train.checkpoint_every_steps": 0}
    one = make(f"small_{choose}", **fields, **{"train.keep": 1})
    saved, save = [], checkpoint.Checkpointer.save
    monkeypatch.setattr(
        checkpoint.Checkpointer,
        "save",
        lambda self, state, meta: (saved.append(int(state.step)), save(self, state, meta)),
    )
    train.run(one)
    assert saved == [9]  # at the end alone
    root = one.workdir / "checkpoints"
    items = {str(p.parent.relative_to(root)) for p in root.glob("**/_METADATA")}
    kept = json.loads((one.workdir / "finished.json").read_text())
    assert kept == {"weights": choose, "step": provenance(one.workdir)["checkpoint_step"]}
    where = f"best/{kept['step']}" if choose == "best" else "9"
    assert items == {f"{where}/variables"}
    trees = [made.trained()[0] for made in (one, runs[choose])]
    jax.tree.map(np.testing.assert_array_equal, *trees)

    before = provenance(one.workdir)
    monkeypatch.setattr(train.loop, "fit", None)
    (one.workdir / "evaluation" / "summary.json").unlink()
    train.run(one)
    assert provenance(one.workdir) == before
    with pytest.raises(config_lib.ConfigError, match=r"(?s)train.epochs: 3 -> 4.*has ended"):
        train.run(make(f"small_{choose}", epochs=4, **fields))
    if choose == "best":
        with pytest.raises(DataError, match="only the best weights were kept"):
            make("small_best", **fields | {"train.choose": "last"}).trained()


def test_a_finished_run_whose_end_was_interrupted_comes_to_it(runs, make, monkeypatch):
    """Killed between any two removals: it is not taken for damaged, and ends as it would have."""
    one, remove = make("cut", **{"train.choose": "last", "train.keep_state": False}), []

    def killed(path, **_):
        remove.append(path.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "shutil", types.SimpleNamespace(rmtree=killed))
        train.run(one)
    assert len(remove) == 1 and run_folder.finished(one.workdir)
    with monkeypatch.context() as patch:
        patch.setattr(train.loop, "fit", None)
        train.run(one)
    assert [p.name for p in (one.workdir / "checkpoints").glob("[0-9]*/*/_METADATA")] == [
        "_METADATA"
    ]
