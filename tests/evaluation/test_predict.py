import dataclasses
import errno
import gzip

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax.errors import DataError, ManyErrors
from tests.evaluation.cases import AFFINE, SHAPE, oracle, predict


def test_labels_are_not_read_for_predicting(challenge, files, tmp_path):
    files[0].label.write_bytes(b"nonsense")
    assert not predict(challenge, files[:1], tmp_path / "predictions").failed


def test_existing_predictions_are_kept_unless_told_otherwise(challenge, files, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    kept = folder / f"{files[1].id}.nii.gz"
    kept.write_bytes(b"mine")
    result = predict(challenge, files, folder)
    assert result.skipped == [kept] and len(result.written) == 2
    assert kept.read_bytes() == b"mine"
    result = predict(challenge, files, folder, overwrite=True)
    assert not result.skipped and len(result.written) == 3
    assert nib.load(kept).shape == SHAPE


def test_failures_are_collected_with_type_and_message(challenge, files, tmp_path, caplog):
    whole = gzip.compress(bytes(100_000))
    files[0].images[2].write_bytes(whole[: len(whole) // 2])
    calls = []

    def fails_once(image):
        calls.append(image.shape)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return oracle(image)

    before = [("other", "DataError: no t1")]
    result = predict(challenge, files, tmp_path / "p", fails_once, errors=before)
    assert [case for case, _ in result.failed] == ["other", files[0].id, files[1].id]
    assert str(files[0].images[2]) in result.failed[1][1]
    assert result.failed[1][1].startswith("DataError: ")
    assert result.failed[2][1] == "RuntimeError: out of memory"
    assert [path.name for path in result.written] == [f"{files[2].id}.nii.gz"]
    assert "fails_once" in caplog.text  # the traceback of what nobody expected
    with pytest.raises(ManyErrors, match="(?s)1 cases are predicted.*no t1.*out of memory"):
        result.raise_if_failed()


def test_output_that_is_no_probability_map_is_a_failure_of_its_case(challenge, files, tmp_path):
    outputs = [
        lambda image: oracle(image)[..., :2],
        lambda image: np.full_like(oracle(image), np.nan),
    ]
    for fn, message in zip(outputs, ("expected", "not finite"), strict=True):
        result = predict(challenge, files[:1], tmp_path / "p", fn)
        assert message in result.failed[0][1] and not list((tmp_path / "p").iterdir())


def test_an_interrupt_is_no_failure(challenge, files, tmp_path):
    def interrupted(image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(challenge, files, tmp_path / "p", interrupted)


def test_an_unwritable_folder_stops_at_once(challenge, files, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "predictions"
    with pytest.raises(DataError, match=str(folder)):
        predict(challenge, files, folder, lambda image: pytest.fail("predicted nevertheless"))


def test_a_disk_that_fills_up_stops_at_once(challenge, files, tmp_path, monkeypatch):
    tried = []

    def full(path, *_):
        tried.append(path)
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DataError(f"{path}: cannot be written") from error

    monkeypatch.setattr(challenge, "write", full)
    with pytest.raises(DataError, match=f"{tmp_path / 'p'}: .*No space left"):
        predict(challenge, files, tmp_path / "p")
    assert len(tried) == 1


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["image", "label", "link"])
def test_a_cases_own_files_are_neither_overwritten_nor_taken_for_predictions(
    challenge, files, tmp_path, overwrite, what
):
    folder = tmp_path / "decathlon"
    folder.mkdir()
    own = folder / f"{files[0].id}.nii.gz"
    own.write_bytes(b"the only copy")
    listed = own
    if what == "link":  # the data root is often another name of the same folder
        (tmp_path / "link").symlink_to(folder)
        listed = tmp_path / "link" / own.name
    case = dataclasses.replace(files[0], images=(listed,), label=None)
    if what == "label":
        case = dataclasses.replace(files[0], label=own)
    result = predict(challenge, [case, files[1]], folder, overwrite=overwrite)
    assert own.read_bytes() == b"the only copy"
    assert not result.skipped and len(result.written) == 1
    assert result.failed[0][0] == case.id and f"{own}: is an image or label" in result.failed[0][1]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_does_not_write_runs_the_network_in_step(
    challenge, files, tmp_path, overwrite
):
    """Both start before the first has written anything, as the network's collectives make them."""
    folder = tmp_path / "predictions"
    predict(challenge, files[:1], folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    seen = []

    def other(image):
        seen.append(image)
        for case in files:  # what the first process writes meanwhile
            (folder / f"{case.id}.nii.gz").touch()
        return oracle(image)

    result = predict(challenge, files, folder, other, overwrite=overwrite, write=False)
    assert len(seen) == len(result.written) == (3 if overwrite else 2)
    assert {path: path.read_bytes() for path in before} == before
    assert all(not (folder / f"{case.id}.nii.gz").read_bytes() for case in files[1:])
    predict(challenge, files, tmp_path / "new", write=False)
    assert not (tmp_path / "new").exists()


def test_an_image_that_is_not_masked_is_said_when_it_is_predicted(
    challenge, data, files, tmp_path, caplog
):
    path = data / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj) - 1000, AFFINE), path)
    predict(challenge, files, tmp_path / "p", lambda x: np.zeros((*x.shape[:3], 3), np.float32))
    assert [m for m in caplog.messages if "not masked" in m] == [
        m for m in caplog.messages if m.startswith("BraTS2021_00001: t1: not masked")
    ]
    assert "t1: not masked" in caplog.text and "in all" not in caplog.text


def test_what_is_to_be_said_of_many_cases_is_said_at_the_first_and_counted(
    challenge, data, files, tmp_path, caplog
):
    for path in data.glob("*/*_t1.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj) - 1000, AFFINE), path)
    predict(challenge, files, tmp_path / "p", lambda x: np.zeros((*x.shape[:3], 3), np.float32))
    said = [m for m in caplog.messages if "not masked" in m]
    assert [m.partition(": t1: not masked")[0] for m in said] == [
        files[0].id,
        "3 of 3 cases in all",
    ]
