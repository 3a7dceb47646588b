"""A loss that is not a number: stopped at with all that is needed to look into it, or left out."""

import errno
import os

import jax
import numpy as np
import pytest

from crossdim_jax.runtime import sharding
from crossdim_jax.training import nonfinite
from crossdim_jax.training.journal import TrainingError
from crossdim_jax.training.loop import fit
from tests import toy

MODEL = toy.ToyNet(norm=True, rate=0.2)


@pytest.fixture(scope="module")
def skipping():
    """State on the host, step that skips, mesh."""
    mesh = sharding.make_mesh(1, 1)
    state, step, mesh = toy.make_run(MODEL, mesh=mesh, skip_nonfinite=True, sync_period=2)
    return jax.device_get(state), step, mesh


def run(skipping, workdir, *spoil_at, **options):
    host, step, mesh = skipping
    state, batches = jax.device_put(host, sharding.replicated(mesh)), toy.Batches(spoil_at=spoil_at)
    return fit(state, step, batches, toy.settings(workdir, **options), mesh=mesh)


def test_a_skipped_step_changes_nothing_but_the_step_number(skipping):
    host, step, mesh = skipping
    state = jax.device_put(host, sharding.replicated(mesh))
    batches = toy.Batches(spoil_at=1)
    for skipped in (False, True, False):
        batch = {name: array for name, array in next(batches).items() if name != "id"}
        before = jax.tree.map(lambda x: np.array(x, copy=True), state)
        state, _ = step(state, sharding.shard_batch(batch, mesh))
        assert int(state.step) == before.step + 1
        same = jax.tree.map(
            np.array_equal, jax.device_get(state)._replace(step=before.step), before
        )
        assert jax.tree.all(same) == skipped
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


def test_skipped_steps_are_counted_and_have_no_part_in_the_means(skipping, tmp_path):
    run(skipping, tmp_path / "each", 3, log_every_steps=1, skip_nonfinite=1)
    run(skipping, tmp_path / "two", 3, log_every_steps=2, skip_nonfinite=1)
    each, two = (toy.read_metrics(tmp_path / name) for name in ("each", "two"))
    assert [line["skipped_steps"] for line in each] == [0, 0, 0, 1, 1, 1]
    assert each[3]["loss"] is None and each[3]["dice_WT"] is None
    assert two[1]["loss"] == each[2]["loss"] and two[1]["dice"] == each[2]["dice"]


def test_more_than_are_allowed_stop_the_run_even_over_a_resume(skipping, tmp_path):
    run(skipping, tmp_path, 1, skip_nonfinite=1, total_steps=2)
    with pytest.raises(TrainingError, match="step 5: .*one more than the 1 that may be left out"):
        run(skipping, tmp_path, 4, skip_nonfinite=1)
    run(skipping, tmp_path, 4, skip_nonfinite=2)  # from its last checkpoint, of step 4
    assert toy.read_metrics(tmp_path)[-1]["skipped_steps"] == 2


def test_the_batch_is_kept_to_look_at(skipping, tmp_path):
    with pytest.raises(TrainingError) as caught:
        run(skipping, tmp_path, 3)
    path = tmp_path / "nonfinite" / "step_4.npz"
    assert str(path) in str(caught.value)
    assert "The image itself is not finite in case_3_0." in str(caught.value)
    with np.load(path, allow_pickle=False) as kept:
        image, target = toy.make_arrays(3, 4)
        image[0, 0, 0, 0, 0] = np.nan
        np.testing.assert_array_equal(kept["image"], image)
        np.testing.assert_array_equal(kept["target"], target)
        assert kept["id"].tolist() == [f"case_3_{i}" for i in range(4)]
        assert kept["step"] == 4 and np.isnan(kept["loss"])


def test_a_dump_that_cannot_be_written_does_not_hide_the_step(skipping, tmp_path):
    (tmp_path / "nonfinite").write_text("")
    with pytest.raises(TrainingError, match="step 4: .*could not be written"):
        run(skipping, tmp_path, 3)


def test_a_dump_cut_off_by_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    """And cases of any name are told of in one line without orders to the terminal."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    batch = {"image": np.full((1, 2, 2, 2, 1), np.nan), "id": np.array(["a\x1b[2J\nb\udcfc"])}
    assert "not finite in a\\x1b[2J\\x0ab\\xfc." in nonfinite.describe(3, np.nan, 1.0, batch)
    nonfinite.dump(tmp_path, 3, np.nan, 1.0, batch)
    path = tmp_path / "nonfinite" / "step_3.npz"
    with np.load(path, allow_pickle=False) as kept:
        assert kept["id"].tolist() == batch["id"].tolist()
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    said = nonfinite.dump(tmp_path, 3, np.nan, 2.0, batch)
    assert "could not be written" in said and "No space left" in said
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
