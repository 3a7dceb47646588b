"""An exported model gives the labels of `--mode=predict`, without JAX; a damaged one gives none."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from configs import dataset_omnianet
from crossdim_jax.challenges.dataset import phantom
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.evaluation import postprocessing
from crossdim_jax.export import runner
from crossdim_jax.run import ensemble, experiment, export, predict
from crossdim_jax.storage import checksums, run_folder
from tests.weight_port import tiny


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three unlabelled cases; the labels of the phantoms are in their own folder."""
    root = phantom.ensure(tmp_path_factory.mktemp("data") / "p", 3, shape=(24, 26, 28))
    return root


@pytest.fixture(scope="module")
def job(cases, tmp_path_factory):
    """Two folds of a 2D network whose parameters are random numbers."""
    config = dataset_omnianet.get_config("debug")
    with config.unlocked():
        del config.phantoms
        config.challenge.name = "dataset"
        config.model.encoder = "efficientnet_tiny"
        config.model.widths, config.model.stem_width = (8,) * 5, 8
        config.model.ops = "lax"  # compiles fastest
        config.mesh.data = 1
        config.data.root, config.data.patch = str(cases), (32, 64)
        config.inference.flips, config.inference.keep_largest = (1,), True
    with tiny.registered(), pytest.MonkeyPatch.context() as patch:
        made = experiment.build(config, tmp_path_factory.mktemp("run"))
        folds = ensemble.all_folds(made)[:2]
        rule = postprocessing.Rule("core", (2,), 0.5, 0.6)
        made.workdir.mkdir(exist_ok=True)
        (made.workdir / run_folder.POSTPROCESSING).write_text(
            json.dumps(postprocessing.record([rule]))
        )
        patch.setattr(ensemble, "members", lambda _: folds)
        patch.setattr(experiment.Experiment, "require_same_network", lambda _: None)
        patch.setattr(experiment.Experiment, "trained", random_weights)
        yield made


def random_weights(fold):
    """Weights, other ones for each fold, under which every class occurs."""
    rng = np.random.default_rng(fold.data.split["fold"])
    abstract = jax.eval_shape(
        lambda: fold.model.init(jax.random.key(0), jnp.zeros(fold.image_shape))
    )

    def fill(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return {"scale": 1 + noise / 5, "var": 1 + np.abs(noise)}.get(path[-1].key, noise / 5)

    return jax.tree_util.tree_map_with_path(fill, abstract), {"step": 7}


@pytest.fixture(scope="module")
def model(job, tmp_path_factory):
    return export.run(job, str(tmp_path_factory.mktemp("out") / "model"), licence="CC-BY-4.0")


def labels(folder):
    return {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(folder.glob("*.nii.gz"))}


def test_labels_are_those_of_the_mode_predict(job, model, cases, tmp_path):
    predict.run(job, str(cases), str(tmp_path / "jax"))
    runner.run(model, cases, tmp_path / "onnx")
    expected, found = labels(tmp_path / "jax"), labels(tmp_path / "onnx")
    assert expected.keys() == found.keys() and len(found) == 3
    assert len(np.unique(np.concatenate([x.ravel() for x in found.values()]))) > 1
    assert all(np.array_equal(expected[name], found[name]) for name in found)
    raw = dataclasses.replace(job, inference=dataclasses.replace(job.inference, keep_largest=False))
    predict.run(raw, str(cases), str(tmp_path / "raw"))
    assert any(not np.array_equal(x, found[name]) for name, x in labels(tmp_path / "raw").items())


def test_a_stopped_export_is_made_again_and_a_diverged_network_is_refused(
    job, tmp_path, monkeypatch
):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fold_0.onnx").write_bytes(b"cut short")

    def diverged(fold):
        variables, record = random_weights(fold)
        return jax.tree.map(lambda leaf: leaf * np.nan, variables), record

    monkeypatch.setattr(experiment.Experiment, "trained", diverged)
    with pytest.raises(DataError, match="not finite"):
        export.run(job, str(tmp_path))
    (tmp_path / "models" / "mine.txt").touch()
    with pytest.raises(DataError, match="models/mine.txt"):
        export.run(job, str(tmp_path))


def test_the_folder_says_what_the_model_is(model):
    record = json.loads((model / "configs" / "metadata.json").read_text())
    wanted = {"version", "monai_version", "pytorch_version", "numpy_version", "task", "authors"}
    wanted |= {"description", "copyright", "required_packages_version", "network_data_format"}
    wanted |= {"schema"}
    assert wanted <= record.keys() and record["license"] == "CC-BY-4.0"
    image = record["network_data_format"]["inputs"]["image"]
    logits = record["network_data_format"]["outputs"]["logits"]
    required = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
    assert required <= image.keys() & logits.keys()  # as MONAI's verify_metadata asks for
    assert image["spatial_shape"] == [32, 64] and image["channel_def"] == {"0": "MR"}
    own = record["crossdim_jax"]
    assert own["networks"] == ["fold_0.onnx", "fold_1.onnx"]
    assert own["inference"]["flips"] == [1] and own["challenge"]["described"]["labels"]
    assert [one["step"] for one in own["weights"]] == [7, 7]
    assert 0 <= own["check"]["max_relative_error"] < 1e-4
    card = (model / "docs" / "README.md").read_text()
    assert "CC-BY-4.0" in card and "core" in card and "crossdim-predict" in card
    assert str(model.parent) not in json.dumps(record) + card


def test_nothing_is_overwritten_and_images_must_go_in_windows(job, model):
    with pytest.raises(DataError, match="expected a folder that is empty"):
        export.run(job, str(model))
    whole = dataclasses.replace(job.inference, mode="whole")
    with pytest.raises(ConfigError, match="inference.mode=window"):
        export.run(dataclasses.replace(job, inference=whole), "elsewhere")


def edit(folder):
    path = folder / "configs" / "metadata.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


def told(change=lambda own: None, network=None):
    """An edit by someone who writes the checksums anew: of the project's part of the metadata."""

    def edited(folder):
        path = folder / "configs" / "metadata.json"
        record = json.loads(path.read_text())
        change(record["crossdim_jax"])
        path.write_text(json.dumps(record))
        if network:
            (folder / "models" / "fold_1.onnx").write_bytes(network)
        checksums.write(folder)

    return edited


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "models/fold_1.onnx").write_bytes(b"short"), "fold_1.onnx has 5 bytes"),
        (lambda p: (p / "models/fold_0.onnx").unlink(), "fold_0.onnx cannot be read"),
        (edit, "metadata.json is not as it was written"),
        (lambda p: (p / "checksums.json").unlink(), "holds no checksums.json"),
        (lambda p: shutil.rmtree(p / "configs"), "written by --mode=export"),
        (lambda p: (p / "checksums.json").write_text('{"LICENSE'), "not a record of checksums"),
        (told(lambda own: own.update(format=2)), "is of format 2, this version reads up to 1"),
        (told(lambda own: own.pop("challenge")), "challenge"),
        (told(lambda own: own["challenge"].update(name="other")), "'other'"),
        (told(lambda own: own.update(networks=["../away.onnx"])), "no name of a file in models"),
        (told(lambda own: own["inference"].update(patch=[1, 32, 96])), "takes 1 channels of"),
        (told(lambda own: own["inference"].update(overlap=1.5)), "overlap=1.5"),
        (told(lambda own: own["inference"].pop("flips")), "cannot be used: 'flips'"),
        (told(network=b"no ONNX"), "ONNX Runtime cannot use it"),
    ],
)
def test_a_model_that_is_not_as_it_was_written_is_refused(model, tmp_path, damage, message, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    damage(copy)
    assert runner.command([str(copy), str(tmp_path), str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_faulty_cases_leave_the_others(model, cases, tmp_path):
    for path in (cases / "imagesTr").glob("*.nii.gz"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "cut_0000.nii.gz").write_bytes(path.read_bytes()[:2000])
    image = nib.load(path)
    two = np.repeat(np.asarray(image.dataobj)[..., None], 2, -1)
    nib.save(nib.Nifti1Image(two, image.affine), tmp_path / path.name)
    with pytest.raises(ManyErrors, match="2 channels .* expected 1: MR") as caught:
        runner.run(model, tmp_path, tmp_path / "out")
    assert [case for case, _ in caught.value.failures] == ["cut", path.name.split("_0000")[0]]
    assert len(labels(tmp_path / "out")) == 2


def test_the_runner_imports_neither_jax_nor_what_trains():
    """Nor do the challenges, whichever a model is of."""
    code = """if True:
        import sys
        for name in ("jax", "flax", "optax", "orbax", "grain", "ml_collections", "absl",
                     "matplotlib", "safetensors", "onnx", "torch"):
            sys.modules[name] = None
        from crossdim_jax import challenges
        from crossdim_jax.export import runner
        for name in challenges.CHALLENGES:
            challenges.find(name)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_is_missing_is_named_with_what_to_do():
    code = """if True:
        import sys
        sys.modules["onnxruntime"] = None
        from crossdim_jax.export import __main__
        __main__.main()
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "needs onnxruntime" in ended.stderr and "MODEL/requirements.txt" in ended.stderr


def test_scores_of_other_weights_are_said_to_be_that(job, tmp_path):
    folder = job.workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    for step, differs in ((7, False), (5, True)):
        record = {"statistics": {}, "provenance": {"checkpoint_step": step}}
        (folder / "summary.json").write_text(json.dumps(record))
        card = export.run(job, str(tmp_path / str(step))) / "docs" / "README.md"
        assert ("scores are of the weights of step 5" in card.read_text()) == differs
