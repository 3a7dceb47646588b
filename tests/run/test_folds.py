import csv
import json
import shutil

import numpy as np
import pytest

from configs import camus_omnianet, dataset_dxnet
from crossdim_jax.challenges.camus import phantom
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.run import cases, ensemble, experiment, folds
from crossdim_jax.storage import run_folder
from tests import dataset_folders, toy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return phantom.ensure(tmp_path_factory.mktemp("p") / "p", 5, pixel_mm=2.0, n_frames=2)


@pytest.fixture
def job(root, tmp_path):
    config = camus_omnianet.get_config("debug")
    with config.unlocked():
        config.data.root = str(root)
        config.fold = 3
        del config.phantoms, config.model
        config.model = {"name": "toy"}
    with toy.registered():
        yield experiment.build(config, tmp_path / "cv")


@pytest.fixture
def trained(monkeypatch):
    """The folds that were trained, in order; training predicts every held-out case perfectly."""
    order = []

    def run_training(fold):
        order.append(fold.workdir.name)
        files = fold.cases()
        split = cases.make_split(fold, files)
        split.write(fold.workdir / run_folder.SPLITS)
        run_folder.claim(fold.workdir, fold.config.to_dict())
        for case in files:
            if case.id in split.validation:
                loaded = fold.challenge.load(case)
                path = fold.challenge.prediction_path(fold.workdir / "predictions", case.id)
                fold.challenge.write(path, loaded.label, loaded.geometry)
        (fold.workdir / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(folds.train, "run", run_training)
    monkeypatch.setattr(folds.page, "write", lambda workdir, *_: workdir / "report.html")
    return order


def test_the_fold_has_a_short_name_on_the_command_line():
    config = camus_omnianet.get_config()
    config.fold = 2
    assert config.data.split.fold == 2 and config.to_dict()["data"]["split"]["fold"] == 2
    config.data.split.fold = 4
    assert config.fold == 4


def test_every_case_is_scored_once_by_the_fold_that_held_it_out(job, trained):
    assert folds.run(job) == job.workdir / "report.html"
    assert trained == [f"fold_{k}" for k in range(5)]
    with (job.workdir / "evaluation" / "cases.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [case.id for case in job.cases()] and len(ids) == 20
    held = [
        json.loads((job.workdir / f"fold_{k}" / "splits.json").read_text())["validation"]
        for k in range(5)
    ]
    assert sorted(sum(held, [])) == ids
    summary = json.loads((job.workdir / "evaluation" / "summary.json").read_text())
    assert summary["statistics"]["dice_LVendo"]["mean"] == 1
    assert summary["provenance"]["cross_validation"].startswith("5 folds")
    assert json.loads((job.workdir / "fold_2" / "config.json").read_text())["fold"] == 2


def test_an_interrupted_cross_validation_goes_on_with_the_folds_that_are_left(
    job, trained, monkeypatch
):
    run_training = folds.train.run

    def stops(fold):
        if fold.workdir.name == "fold_2":
            run_folder.claim(fold.workdir, fold.config.to_dict(), defaults=fold.defaults)
            (fold.workdir / "checkpoints" / "1").mkdir(parents=True)
            raise KeyboardInterrupt
        run_training(fold)

    monkeypatch.setattr(folds.train, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        folds.run(job)
    with pytest.raises(DataError, match="fold_2, fold_3, fold_4 of 5 folds are not trained yet"):
        ensemble.members(job)
    monkeypatch.setattr(folds.train, "run", run_training)
    folds.run(job)
    assert trained == ["fold_0", "fold_1", "fold_2", "fold_3", "fold_4"]
    assert [m.workdir.name for m in ensemble.members(job)] == trained
    folds.run(job)
    assert len(trained) == 5  # all are done


def test_folds_refuse_another_config_and_the_folder_of_a_single_run(job, trained):
    folds.run(job)
    with job.config.unlocked():
        job.config.optim.learning_rate = 1.0
    with pytest.raises(ConfigError, match="fold_0: this folder holds a run with another config"):
        folds.run(job)
    (job.workdir / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cv: this folder holds a single run"):
        folds.run(job)


def test_the_ensemble_is_the_mean_of_probabilities(job, trained, monkeypatch):
    folds.run(job)
    image = np.ones((1, 32, 32, 1), np.float32)
    monkeypatch.setattr(
        experiment.Experiment,
        "trained",
        lambda self: (n := int(self.workdir.name[-1]), {"step": 7 if n else 5}),
    )
    window = lambda variables, image: np.full((*image.shape[:-1], 4), float(variables))  # noqa: E731
    monkeypatch.setattr(experiment.Experiment, "predictor", lambda self, flipped: window)
    predict, said = ensemble.predictor(job)
    np.testing.assert_array_equal(predict(image), np.full((1, 32, 32, 4), 2.0))
    said_of = "the last weights, of step"
    assert said == f"the mean of 5 folds: {said_of} 5; {said_of} 7"  # each once
    predict, said = ensemble.predictor(ensemble.all_folds(job)[3])
    assert predict(image).max() == 3 and said == f"{said_of} 7"


# --------------------------------------------------------------------------- folds of a data set

SESSIONS = [f"sub-{s}_ses-{t}" for s in range(1, 6) for t in (1, 2)]


def of_dataset(root, workdir, **split):
    config = dataset_dxnet.get_config("debug")
    with config.unlocked():
        del config.phantoms, config.model
        config.model = {"name": "toy"}
        config.challenge.name = "dataset"
        config.data.root = str(root)
        config.data.split.kind = "official"
        config.data.split.update(split)
        config.fold = 1  # which --mode=folds does not ask for
    with toy.registered():
        return experiment.build(config, workdir)


def held(job):
    """The held-out cases of every fold."""
    found = sorted(job.workdir.glob("fold_*/splits.json"))
    return [json.loads(path.read_text())["validation"] for path in found]


def scored(job):
    with (job.workdir / "evaluation" / "cases.csv").open() as file:
        return [row["id"] for row in csv.DictReader(file)]


def test_a_data_set_is_cross_validated_on_nnunets_folds(tmp_path, trained):
    root = dataset_folders.nnunet(tmp_path / "data", SESSIONS)
    job = of_dataset(root, tmp_path / "cv")
    folds.run(job)
    # KFold(5, shuffle=True, random_state=12345) over five patients holds out 0, 4, 3, 1, 2.
    assert held(job) == [[f"sub-{s}_ses-1", f"sub-{s}_ses-2"] for s in (1, 5, 4, 2, 3)]
    assert scored(job) == SESSIONS
    own = of_dataset(root, tmp_path / "own", kind="kfold", folds=2)
    folds.run(own)
    assert len(held(own)) == 2 and scored(own) == SESSIONS


def test_a_data_set_is_cross_validated_on_the_folds_that_it_gives(tmp_path, trained, capsys):
    root = dataset_folders.nnunet(tmp_path / "data", SESSIONS)
    one, two, rest = SESSIONS[:2], SESSIONS[2:6], SESSIONS[6:]

    def give(*validation):
        given = [{"train": [c for c in SESSIONS if c not in v], "val": v} for v in validation]
        (root / "splits_final.json").write_text(json.dumps(given))

    give(one, two)
    job = of_dataset(root, tmp_path / "cv")
    folds.run(job)
    assert held(job) == [one, two] and scored(job) == one + two
    assert [member.workdir.name for member in ensemble.members(job)] == ["fold_0", "fold_1"]
    assert "4 cases are held out by no fold" in capsys.readouterr().out
    give(one, one + two)
    with pytest.raises(DataError, match=r"are held out by several folds .*sub-1_ses-1"):
        folds.run(of_dataset(root, tmp_path / "other"))
    give(one, two, rest)  # the trained folds predict, whatever the data say by now
    assert len(ensemble.members(job)) == 2
    shutil.rmtree(root)
    assert len(ensemble.members(job)) == 2
    (job.workdir / "fold_1/done").unlink()
    with pytest.raises(DataError, match="fold_1 of 2 folds are not trained yet"):
        ensemble.members(job)
