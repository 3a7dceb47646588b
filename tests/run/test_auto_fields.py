"""A plan that nobody edits: from the data to a run, and from its record to what follows it."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from configs import dataset_common, dataset_dsnet, dataset_dxnet, dataset_omnianet
from crossdim_jax.challenges.dataset import phantom
from crossdim_jax.data import plan_network
from crossdim_jax.errors import ConfigError, DataError, WeightsError
from crossdim_jax.evaluation import postprocessing
from crossdim_jax.models.activations import Footprint
from crossdim_jax.models.layers import require_multiple
from crossdim_jax.run import (
    auto_fields,
    config_gate,
    evaluate,
    experiment,
    from_config,
    initial_state,
    predict,
    train,
)
from crossdim_jax.storage import run_folder
from tests import dataset_folders as folders
from tests import toy
from tests.run.test_dataset import small
from tests.weight_port import tiny

LABELS = {"background": 0, "shell": 1, "core": 2}  # an order that sorting would change


class Net(toy.ToyNet):
    def check_size(self, spatial):
        require_multiple(spatial, (4, 32, 32), "this network")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Networks of a few convolutions, whose memory is not traced."""
    with tiny.registered(), toy.registered(Net), pytest.MonkeyPatch.context() as patch:
        footprint = Footprint(10_000, 1000.0)
        patch.setattr(plan_network.activations, "footprint", lambda *args: footprint)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = phantom.ensure(tmp_path_factory.mktemp("data") / "p", 5, shape=(24, 26, 28))
    return folders.describe(root, labels=LABELS, numTraining=5, channel_names={"0": "CT"})


@pytest.fixture(scope="module")
def make(root, tmp_path_factory):
    """Experiments of a config in which whatever can say "auto" does."""
    folder = tmp_path_factory.mktemp("auto")

    def make(name="run", module=None, trains=True, folds=False, **fields):
        network, module = ("toy", dataset_dxnet) if module is None else (None, module)
        config = small(module.get_config("debug"), folder, fields.pop("data__root", root))
        config = config.copy_and_resolve_references().unlock()
        config.data.split.kind = "official"
        for field in auto_fields.FIELDS:
            section, key = field.split(".")
            if key in config[section]:
                dataset_common.auto(config[section], key)
        config.challenge.root = config.data.root
        if network:
            config.model = {"name": network}
        config.plan.steps = 2
        for field, value in fields.items():
            section, key = field.split("__")
            if key in config[section]:
                del config[section][key]
            config[section][key] = value
        return experiment.build(config.lock(), folder / name, trains=trains, folds=folds)

    return make


@pytest.fixture(scope="module")
def job(make):
    made = make()
    with toy.sketched():
        train.run(made)
    return made


def test_the_record_holds_values_and_the_reasons_of_each(job):
    config = run_folder.read_config(job.workdir)
    assert not auto_fields.asked(auto_fields.flatten(job.config))
    lines = json.loads((job.workdir / "plan.json").read_text())["lines"]
    assert {line["field"] for line in lines} == set(auto_fields.FIELDS) - {
        *("challenge.intensities", "optim.decay_per_epoch"),
        *("model.depth_kernels", "model.depth_strides"),
    }
    for line in lines:
        section, key = line["field"].split(".")
        assert config[section][key] == line["value"] and line["reason"]
    assert job.challenge.spacing_mm == (1.5, 1.0, 1.2) and job.loss.activation == "softmax"
    assert str(job.planned).endswith(auto_fields.recorded_plan(job.workdir))


def test_ct_is_normalised_by_the_foreground_of_the_training_cases_alone(job, root):
    held = json.loads((job.workdir / "splits.json").read_text())["validation"]
    means = []
    for path in sorted((root / "labelsTr").iterdir()):
        case = path.name.removesuffix(".nii.gz")
        if case not in held:
            image = np.asarray(nib.load(root / "imagesTr" / f"{case}_0000.nii.gz").dataobj)
            means.append(image[np.asarray(nib.load(path).dataobj) > 0].mean())
    assert len(means) == 4 and len(held) == 1
    (found,) = job.challenge.intensities
    assert found["mean"] == pytest.approx(np.mean(means))


def test_a_run_that_goes_on_takes_its_record_and_no_new_plan(make, job):
    again = make(plan__memory_gib=0.1)
    assert again.planned is None
    assert again.config.to_dict() | {"plan": {}} == job.config.to_dict() | {"plan": {}}
    again.claim(write=False)  # the run folder takes it for the same run


def test_prediction_needs_no_data_root_and_no_measurement(make, job, root, tmp_path):
    alone = make(trains=False, data__root="")
    assert alone.challenge.regions == ("shell", "core") and alone.planned is None
    (case,) = json.loads((job.workdir / "splits.json").read_text())["validation"]
    shutil.copy(root / "imagesTr" / f"{case}_0000.nii.gz", tmp_path)
    out = predict.run(alone, str(tmp_path), str(tmp_path / "out"))
    name = f"{case}.nii.gz"
    assert (out / name).read_bytes() == (job.workdir / "predictions" / name).read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": {"background": 0, "core": 2, "shell": 1}},
        {"channel_names": {"0": "MR"}},
    ],
)
def test_another_meaning_than_the_recorded_is_refused_with_both_files(
    make, job, root, tmp_path, changed
):
    other = tmp_path / "other"
    shutil.copytree(root, other)
    told = {"labels": LABELS, "numTraining": 5, "channel_names": {"0": "CT"}}
    folders.describe(other, **told | changed)
    with pytest.raises(DataError) as caught:
        evaluate.run(make(trains=False, data__root=str(other)))
    assert str(other / "dataset.json") in str(caught.value)
    assert str(job.workdir / "dataset.json") in str(caught.value)


def test_what_the_config_says_wins_and_the_rest_follows(make):
    made = make("given", data__patch=(32, 64, 64), challenge__spacing_mm=(3.0, 2.0, 2.4))
    lines = {line["field"]: line for line in made.planned.lines}
    assert made.data.patch == (32, 64, 64) and made.challenge.spacing_mm == (3.0, 2.0, 2.4)
    assert lines["data.patch"]["reason"] == lines["challenge.spacing_mm"]["reason"] == "given"
    assert lines["train.batch_size"]["reason"] != "given"


def test_slices_end_at_the_last_learning_rate(make):
    made = make("slices", dataset_omnianet, plan__steps=30)
    lines = {line["field"]: line["value"] for line in made.planned.lines}
    assert len(made.data.patch) == 2 and "optim.constant_epochs" not in lines
    rate = lines["optim.decay_per_epoch"] ** lines["train.epochs"]
    assert 2e-3 * rate == pytest.approx(3e-4)


def test_without_a_run_nothing_is_planned_for_a_prediction(make):
    with pytest.raises(DataError, match="nothing.*--workdir of a run that was trained"):
        make("nothing", trains=False)


def test_a_wrong_field_is_refused_before_anything_is_measured(make, tmp_path):
    with pytest.raises(ConfigError, match="memory_gib=0"):
        make("wrong", plan__memory_gib=0.0)
    with pytest.raises(ConfigError, match="minutes=5.0: .*voxels_per_second"):
        make("wrong", plan__minutes=5.0)
    with pytest.raises(DataError, match="there is no such folder"):
        make("wrong", data__root=str(tmp_path / "absent"))


def test_folds_are_planned_from_all_cases(make):
    assert len(make("folds", folds=True).planned.measured["cases"]) == 5


def test_a_plan_is_made_from_the_cases_that_are_used_and_in_epochs_of_the_config(make):
    made = make("fewer", data__cases=2, train__steps_per_epoch=1)
    assert len(made.planned.measured["cases"]) == 2
    assert made.config.train.epochs == made.config.plan.steps


def test_weights_of_other_depth_kernels_come_with_the_command_that_makes_them(make, tmp_path):
    file = str(tmp_path / "w.safetensors")
    made = make("ported", dataset_dxnet, weights__file=file, model__depth_kernels=(1,) * 6)
    with pytest.raises(WeightsError) as caught:
        initial_state.load_weights(made)
    assert '--config.model.depth_kernels="(1, 1, 1, 1, 1, 1)"' in str(caught.value)
    assert "w_d1.1.1.1.1.1.safetensors" in str(caught.value)


def test_rules_of_largest_components_are_found_once_and_then_applied(make, job, root, tmp_path):
    asked = make(trains=False, inference__keep_largest=True)
    shutil.copy(root / "imagesTr/phantom_000_0000.nii.gz", tmp_path)
    with pytest.raises(DataError, match="postprocessing.json: not found; --mode=evaluate"):
        predict.run(asked, str(tmp_path), str(tmp_path / "out"))
    (case,) = json.loads((job.workdir / "splits.json").read_text())["validation"]
    path = job.workdir / "predictions" / f"{case}.nii.gz"
    truth = nib.load(root / "labelsTr" / f"{case}.nii.gz")
    label = np.asarray(truth.dataobj).copy()
    label[0, 0, 0] = 2
    nib.save(nib.Nifti1Image(label, truth.affine), path)
    files = [files for files in asked.cases() if files.id == case]
    evaluate.find_rules(asked, files)
    (rule,) = json.loads((job.workdir / run_folder.POSTPROCESSING).read_text())["keep_largest"]
    assert rule["name"] == "foreground" and rule["before"] < rule["after"] == 1
    kept = postprocessing.apply(label, predict.rules(asked))
    np.testing.assert_array_equal(kept, np.asarray(truth.dataobj))


@pytest.mark.parametrize("module", [dataset_dxnet, dataset_dsnet, dataset_omnianet])
def test_what_needs_the_network_alone_needs_no_plan(module):
    config = auto_fields.without_plan(module.get_config())
    config_gate.check_fields(config.to_dict())
    from_config.model(config, 2, 1).check_size(config.data.patch)
    assert not auto_fields.asked(auto_fields.flatten(config))
    given = module.get_config("debug")
    assert auto_fields.without_plan(given) is given
