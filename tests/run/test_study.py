"""A study as a user runs it: run folders, going on, what fails, what is refused."""

import contextlib
import io
import json
import shutil
import signal
from pathlib import Path

import pytest

from configs import dataset_dxnet
from crossdim_jax.challenges.dataset import phantom
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.run import auto_fields, evaluate, study
from crossdim_jax.runtime import stop
from crossdim_jax.storage import run_folder
from crossdim_jax.study import collect, grid, protocol
from crossdim_jax.training.journal import TrainingError
from tests import toy
from tests.run.test_dataset import small
from tests.weight_port import tiny

PAGE = "study.html"
RUNS = [f"{arm}/n_2/seed_{seed}" for seed in (0, 1) for arm in ("plain", "slow")]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Networks are two convolutions; reports of single runs are not written."""
    with toy.registered(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.page, "write", lambda workdir, *_: workdir)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    root = phantom.ensure(folder / "p", 5, shape=(24, 26, 28))
    config = small(dataset_dxnet.get_config("debug"), folder, root)
    with config.unlocked():
        config.model = {"name": "toy"}
        config.data.num_processes = 0
        config.data.split.kind, config.data.split.fraction = "holdout", 0.4
    return config


def fields(**changes):
    """A study of two arms, which need not differ much to be different."""
    return {
        "question": "Is slow better?",
        "arms": {"plain": {}, "slow": {"optim.learning_rate": 1e-4}},
        "reference": "plain",
        "cases": (2,),
        "seeds": (0, 1),
    } | changes


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A study that is trained, evaluated and reported; and what it said."""
    folder, told = tmp_path_factory.mktemp("finished") / "study", io.StringIO()
    with contextlib.redirect_stdout(told):
        assert study.run(config, folder, fields(), defaults=config.to_dict()) == folder / PAGE
    return folder, told.getvalue()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


@pytest.fixture
def launch(config, folder):
    """Starts a study, with other fields of it or of the config if some are given."""

    def launch(call=study.run, part="", config_fields=None, **changes):
        own = auto_fields.filled(config, config_fields or {})
        return call(own, folder, fields(**changes), defaults=config.to_dict(), part=part)

    return launch


@pytest.fixture
def trained(monkeypatch, folder):
    """Names of the runs that were trained, in order; training only leaves a checkpoint."""
    names = []

    def run_training(experiment):
        experiment.claim(write=True)
        names.append(experiment.workdir.relative_to(folder).as_posix())
        (experiment.workdir / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(study.train, "run", run_training)
    monkeypatch.setattr(study.page, "write", lambda workdir, *_: workdir / PAGE)
    monkeypatch.setattr(study.collect, "read", lambda runs: collect.Results((), ()))
    return names


@pytest.fixture
def meeting(monkeypatch):
    """`meeting(name, call)`: what befalls a run, once, when its checkpoint is there."""

    def meet(name, call):
        run, calls = study.train.run, [call]

        def run_training(experiment):
            run(experiment)
            if calls and str(experiment.workdir).endswith(name):
                calls.pop()()

        monkeypatch.setattr(study.train, "run", run_training)

    return meet


def network(config):
    """The config with a network that has an encoder."""
    own = small(dataset_dxnet.get_config("debug"), Path(), Path())
    return auto_fields.filled(config, {"model": own.model.to_dict()})


def recorded(folder):
    return json.loads((folder / "protocol.json").read_text())


def raises(error):
    def call():
        raise error

    return call


def test_runs_are_equal_but_for_what_their_arms_change(finished):
    folder, told = finished
    assert "run 1 of 4: plain, 2 cases, seed 0\n" in told
    assert "run 4 of 4: slow, 2 cases, seed 1 (about" in told
    configs = {name: run_folder.read_config(folder / name) for name in RUNS}
    splits = {name: json.loads((folder / name / "splits.json").read_text()) for name in RUNS}
    protocol = recorded(folder)
    for seed in ("n_2/seed_0", "n_2/seed_1"):
        plain, slow = f"plain/{seed}", f"slow/{seed}"
        differences = run_folder.differences(configs[plain], configs[slow])
        assert differences == {"optim.learning_rate": (1e-3, 1e-4)}
        assert splits[plain] == splits[slow]
        assert splits[plain]["train"] == protocol["training"][seed]
        assert splits[plain]["validation"] == protocol["held_out"]
    for field, value in grid.ENFORCED.items():
        section, name = field.split(".")
        assert all(config[section][name] == value for config in configs.values())
    assert protocol["budget"]["slow"]["steps"] == 3  # an epoch of all training cases


def test_a_run_folder_holds_one_checkpoint(finished):
    folder, _ = finished
    for name in RUNS:
        assert [path.name for path in (folder / name / "checkpoints").glob("[0-9]*")] == ["3"]


def test_the_page_is_made_again_from_the_folder_alone(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "moved")
    (folder / RUNS[1] / "done").unlink()
    (folder / PAGE).unlink()
    assert study.is_study(folder) and not study.is_study(folder / RUNS[0])
    page = study.report(folder).read_text()
    assert "Is slow better?" in page and "not finished yet" in page


def test_a_study_that_was_broken_off_goes_on_and_repeats_nothing(launch, trained, meeting, folder):
    meeting(RUNS[1], raises(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        launch()
    first = recorded(folder)
    launch()
    assert trained == [*RUNS[:2], *RUNS[1:]]  # the one that was broken off goes on
    launch()
    assert len(trained) == 5 and recorded(folder) == first


def test_a_stop_ends_it_between_runs_with_the_status_that_means_again(launch, trained, meeting):
    meeting(RUNS[0], lambda: stop.notice(signal.SIGTERM))
    with pytest.raises(stop.Interrupted) as caught:
        launch()
    assert caught.value.code == stop.AGAIN and trained == RUNS[:1]


@pytest.mark.parametrize("error", [TrainingError("step 3: loss nan"), DataError("a: unreadable")])
def test_a_run_that_fails_is_named_and_the_others_go_on(launch, trained, meeting, folder, error):
    meeting(RUNS[1], raises(error))
    with pytest.raises(ManyErrors, match="1 of 4 runs could not be made") as caught:
        launch()
    assert caught.value.failures == [(RUNS[1], str(error))]
    assert trained == RUNS
    assert json.loads((folder / RUNS[1] / "failed.json").read_text()) == {"error": str(error)}
    (planned,) = [r for r in protocol.runs(recorded(folder), folder) if r.name == RUNS[1]]
    assert str(error) in study._lacks(planned)
    launch()
    assert trained == [*RUNS, RUNS[1]] and not (folder / RUNS[1] / "failed.json").exists()


def test_parts_make_all_runs_and_leave_alone_what_another_process_makes(launch, trained, folder):
    launch(part="0/2")
    assert trained == RUNS[:2]
    with run_folder.only_process(folder / RUNS[2], "studying"):
        launch(part="1/2")
    assert trained == [*RUNS[:2], RUNS[3]]
    launch()
    assert sorted(trained) == sorted(RUNS)


def test_more_seeds_are_an_amendment_and_another_length_is_refused(launch, trained, folder, capsys):
    launch(seeds=(0,))
    launch(seeds=(0, 1))
    assert trained == RUNS
    (amendment,) = recorded(folder)["amendments"]
    assert amendment["runs_done"] == 2 and amendment["changes"] == ["seeds [0] -> [0, 1]"]
    assert "changed after 2 runs were done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="arm plain, steps: 3 -> 6"):
        launch(config_fields={"train.epochs": 2})
    with pytest.raises(ConfigError, match="arm slow, optim.learning_rate: 0.0001 -> 0.01"):
        launch(arms={"plain": {}, "slow": {"optim.learning_rate": 0.01}})
    assert trained == RUNS


def test_before_a_run_is_begun_anything_may_change_also_the_length(launch, trained, folder):
    def broken(experiment):
        raise TrainingError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.train, "run", broken)
        with pytest.raises(ManyErrors):
            launch()
    launch(config_fields={"train.batch_size": 2})  # an epoch of 3 cases
    assert trained == RUNS and recorded(folder)["budget"]["plain"]["steps"] == 2


def test_while_another_process_makes_a_run_nothing_of_it_may_change(launch, trained, folder):
    launch(part="0/4")
    shutil.rmtree(folder / RUNS[0] / "checkpoints")  # as before the end of a training
    (folder / RUNS[0] / "done").unlink()
    written = recorded(folder)
    with (
        run_folder.only_process(folder / RUNS[0], "studying"),
        pytest.raises(ConfigError, match="arm plain, steps: 3 -> 6"),
    ):
        launch(config_fields={"train.epochs": 2})
    assert recorded(folder) == written


def test_all_that_is_wrong_with_arms_is_said_before_anything_is_written(
    launch, trained, config, folder
):
    arms = {
        "plain": {},
        "a": {"optim.learning_rat": 1.0, "train.batch_size": "two"},
        "b": {"model.nme": "toy"},
    }
    with pytest.raises(ConfigError, match="the study cannot start") as caught:
        launch(arms=arms)
    text = str(caught.value)
    assert "arm a: the config has no field optim.learning_rat; beside it are:" in text
    assert "train.batch_size='two'" in text and "arm b: the config has no field model.nme" in text
    arms = {
        "plain": {},
        "c": {"optim.learning_rate": -1.0},
        "d": {"model.name": "nonet"},
        "e": {"weights.file": "nowhere.safetensors"},
    }
    with tiny.registered(), pytest.raises(ConfigError, match="the study cannot start") as caught:
        study.run(network(config), folder, fields(arms=arms), defaults={})
    for words in ("arm c: config.optim.learning_rate=-1.0", "arm d: config.model.name='nonet'"):
        assert words in str(caught.value)
    assert "arm e: nowhere.safetensors" in str(caught.value)
    assert not trained and not (folder / "protocol.json").exists()


def test_each_seed_holds_out_its_fold(launch, trained, folder):
    config_fields = {"data.split.kind": "kfold", "data.split.folds": 3}
    launch(config_fields=config_fields, fold_by_seed=True, seeds=(0, 2))
    found, (ids, cases) = {}, (recorded(folder)["held_out"], recorded(folder)["training"])
    for name in trained:
        config = run_folder.read_config(folder / name)
        found[config["seed"], config["data"]["split"]["fold"]] = name
    assert sorted(found) == [(0, 0), (2, 2)]
    assert len(ids) == 3  # of five cases the first fold has two, the last one
    assert all(len(drawn) == 2 for drawn in cases.values())
    launch(config_fields=config_fields, fold_by_seed=True, seeds=(0, 1, 2))
    assert len(recorded(folder)["held_out"]) == 5 and len(recorded(folder)["amendments"]) == 1
    with pytest.raises(ConfigError, match="seed 3: config.data.split.fold=3"):
        launch(config_fields=config_fields, fold_by_seed=True, seeds=(3,))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cases": (2, 50)}, "50 cases, seed 0: .*50"),
        ({"cases": (3, 1.0)}, "these are 3, 3 cases"),
        ({"metric": "beauty"}, "study.metric='beauty' is unknown; known: dice"),
        ({"config_fields": {"data.split.kind": "all"}}, "no case is held out"),
    ],
)
def test_what_the_cases_do_not_give_is_refused(launch, trained, changes, message):
    with pytest.raises(ConfigError, match=message):
        launch(**changes)
    assert not trained


def test_a_single_runs_folder_is_refused(launch, trained, folder):
    (folder / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="this folder holds a single run"):
        launch()


def test_a_plan_says_how_much_is_left_and_writes_no_protocol(launch, trained, folder):
    text = launch(study.plan)
    assert "4, 0 of them done" in text and "12 in the 4 that are left" in text
    assert "not known" in text and not (folder / "protocol.json").exists()
    fast = {"plan.voxels_per_second": 32.0**3}  # a patch
    assert "12 s of training steps" in launch(study.plan, config_fields=fast)
    launch(part="0/2")
    assert "4, 2 of them done" in launch(study.plan) and not trained[2:]
