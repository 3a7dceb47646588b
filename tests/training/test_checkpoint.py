import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.runtime import sharding
from crossdim_jax.storage import checksums
from crossdim_jax.training import checkpoint, initialise, optim, state
from crossdim_jax.training.checkpoint import Checkpointer
from tests import toy

SHAPE = (1, 8, 6, 4, 1)


@pytest.fixture(scope="module")
def first():
    """A state with a batch norm, lookahead and a frozen part, on the host."""
    optimizer = optim.make(freeze=["encoder/.*"])
    mesh = sharding.make_mesh(1, 1)
    state = initialise.init_state(toy.ToyNet(norm=True), optimizer, SHAPE, mesh, seed=0, say=None)
    return jax.device_get(state)


def at_step(state, step, mesh=None):
    """The state of another step, its slow weights unlike the fast ones."""
    slow = jax.tree.map(lambda x: x + step, state.params.slow)
    state = state._replace(step=np.int32(step), params=state.params._replace(slow=slow))
    return jax.device_put(state, sharding.replicated(mesh or sharding.make_mesh(1, 1)))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(("written_on", "read_on"), [((1, 1), (2, 2)), ((4, 1), (1, 1))])
def test_a_state_comes_back_whole_on_any_devices(tmp_path, first, written_on, read_on):
    state = at_step(first, 3, sharding.make_mesh(*written_on))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, {"data": {"position": 3}, "score": 0.1})
    mesh = sharding.make_mesh(*read_on)
    with Checkpointer(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore_latest(at_step(first, 0, mesh))
    assert_equal(restored, state)
    assert meta == {"data": {"position": 3}, "score": 0.1}
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharding.replicated(mesh)


def test_a_state_without_lookahead_comes_back_too(tmp_path):
    optimizer = optim.make(sync_period=None)
    mesh = sharding.make_mesh(1, 1)
    state = initialise.init_state(toy.ToyNet(), optimizer, SHAPE, mesh, seed=0, say=None)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
        restored, _ = checkpoints.restore_latest(state)
    assert not isinstance(restored.params, optax.LookaheadParams)
    assert_equal(restored, state)


def test_the_latest_are_kept_and_the_best(tmp_path, first):
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore_latest(at_step(first, 0)) is None
        for step in range(1, 6):
            if step in (1, 2):
                checkpoints.save_best(at_step(first, step), {"step": step})
            checkpoints.save(at_step(first, step), {"step": step})
        checkpoints.wait()
        assert checkpoints.steps == [4, 5]
        assert checkpoints.restore_latest(at_step(first, 0))[1] == {"step": 5}
    best, meta = checkpoint.load_variables(tmp_path)
    assert meta == {"step": 2}
    assert_equal(best["params"], at_step(first, 2).params.slow)
    assert_equal(best["batch_stats"], first.batch_stats)


def test_a_resume_forgets_the_best_of_the_steps_it_lost(tmp_path, first):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save_best(at_step(first, step), {"step": step})
        checkpoints.save(at_step(first, 2), {})
        checkpoints.save_best(at_step(first, 6), {"step": 6})
    with Checkpointer(tmp_path) as checkpoints:  # killed in step 7
        assert checkpoints.restore_latest(at_step(first, 0)) is not None
        assert checkpoints.best_steps == [2]  # what the record of step 2 speaks of
        checkpoints.save_best(at_step(first, 4), {"step": 4})  # another device, other rounding
        checkpoints.wait()
        assert checkpoint.load_variables(tmp_path)[1] == {"step": 4}


def test_a_run_that_starts_over_forgets_every_best(tmp_path, first):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save_best(at_step(first, 6), {})
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(at_step(first, 0)) is None
        assert checkpoints.best_steps == []


def test_a_checkpoint_that_is_declined_is_an_error(tmp_path, first):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save_best(at_step(first, 5), {})
        with pytest.raises(DataError, match="best: the checkpoint of step 3 was not written"):
            checkpoints.save_best(at_step(first, 3), {})
        checkpoints.save(at_step(first, 5), {})
        with pytest.raises(DataError, match="checkpoints: the checkpoint of step 3 was not"):
            checkpoints.save(at_step(first, 3), {})


def test_the_best_is_on_disk_before_the_record_that_speaks_of_it(tmp_path, first, monkeypatch):
    events = []
    with Checkpointer(tmp_path) as checkpoints:
        wait, save = checkpoints._best.wait_until_finished, checkpoints._latest.save
        monkeypatch.setattr(
            checkpoints._best, "wait_until_finished", lambda: (wait(), events.append("best"))
        )
        monkeypatch.setattr(
            checkpoints._latest, "save", lambda *a, **k: (events.append("latest"), save(*a, **k))[1]
        )
        checkpoints.save_best(at_step(first, 2), {})
        events.clear()
        checkpoints.save(at_step(first, 2), {"best_step": 2})
        assert events == ["best", "latest"]


def test_evaluation_takes_the_slow_weights_of_the_latest_where_none_is_best(tmp_path, first):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(at_step(first, 7), {"step": 7})
    everywhere = sharding.replicated(sharding.make_mesh(4, 1))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        {"params": first.params.slow, "batch_stats": first.batch_stats},
    )
    variables, meta = checkpoint.load_variables(tmp_path, abstract=abstract)
    assert meta == {"step": 7}
    assert_equal(variables["params"], at_step(first, 7).params.slow)
    assert variables["params"]["head"]["kernel"].sharding == everywhere


def test_a_checkpoint_of_another_model_is_refused(tmp_path, first):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(at_step(first, 1), {})
    other = {"params": {"head": {"kernel": jax.ShapeDtypeStruct((3,), jnp.float32)}}}
    with pytest.raises(DataError, match="of another model.*encoder"):
        checkpoint.load_variables(tmp_path, abstract=other)


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/checkpoints: no checkpoint found"):
        checkpoint.load_variables(tmp_path)


def test_a_folder_of_folds_names_one(tmp_path, first):
    for fold in (0, 1):
        with Checkpointer(tmp_path / f"fold_{fold}") as checkpoints:
            checkpoints.save(at_step(first, 1), {"step": 1})
    with pytest.raises(DataError, match=f"give one of its runs, such as {tmp_path}/fold_0$"):
        checkpoint.load_variables(tmp_path)


def test_a_torn_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, first, capsys):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at_step(first, step), {"step": step})
    torn = tmp_path / "checkpoints" / "2" / "training"
    for file in torn.rglob("*"):
        if file.is_file() and file.stat().st_size > 300:
            file.write_bytes(file.read_bytes()[:100])
    with Checkpointer(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore_latest(at_step(first, 0))
        assert meta == {"step": 1} and int(restored.step) == 1
        assert "checkpoints/2: this checkpoint cannot be read" in capsys.readouterr().err
        checkpoints.save(at_step(first, 2), {"step": "again"})
        checkpoints.wait()
        assert checkpoints.restore_latest(at_step(first, 0))[1] == {"step": "again"}


def flip_a_bit(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_noticed_or_changes_nothing(tmp_path, first, capsys):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at_step(first, step), {"step": step})
    folder = tmp_path / "checkpoints" / "2"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 8
    for path in files:
        before, name = path.read_bytes(), path.relative_to(folder)
        if not before:
            continue
        flip_a_bit(path)
        with Checkpointer(tmp_path) as checkpoints:
            restored, meta = checkpoints.restore_latest(at_step(first, 0))
        said = capsys.readouterr().err
        if str(name) in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # written last, for show
            assert_equal(restored, at_step(first, 2))
        else:
            assert meta == {"step": 1} and int(restored.step) == 1, name
            assert "checkpoints/2: this checkpoint cannot be read" in said
            assert f"({name} " in said or path.name == checksums.FILE
            (tmp_path / "checkpoints" / "unreadable-2").rename(folder)
        path.write_bytes(before)


def test_a_file_that_is_gone_or_grown_is_noticed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    assert checksums.damage(tmp_path) is None  # written before there were checksums
    checksums.write(tmp_path)
    assert checksums.damage(tmp_path) is None
    (tmp_path / "b").write_bytes(b"x")
    assert checksums.damage(tmp_path) == "b has 1 bytes, 0 were written"
    (tmp_path / "b").unlink()
    assert checksums.damage(tmp_path).startswith("b cannot be read")
    (tmp_path / checksums.FILE).write_text("[1")
    assert "not a record" in checksums.damage(tmp_path)


def test_a_damaged_best_is_reported_and_not_evaluated(tmp_path, first, capsys):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save_best(at_step(first, step), {"step": step})
        checkpoints.save(at_step(first, 3), {"step": 3})
    best = tmp_path / "checkpoints" / "best"
    data = [next((best / str(n) / "variables").rglob("d/*")) for n in (1, 2)]
    flip_a_bit(data[1])
    assert checkpoint.load_variables(tmp_path)[1] == {"step": 1}
    assert "best/2: damaged, not used" in capsys.readouterr().err
    with Checkpointer(tmp_path) as checkpoints:  # a resume no longer counts on it
        checkpoints.restore_latest(at_step(first, 0))
        assert checkpoints.best_steps == [1]
    flip_a_bit(data[0])
    assert checkpoint.load_variables(tmp_path)[1] == {"step": 3}
    flip_a_bit(tmp_path / "checkpoints" / "3" / "meta" / "metadata")
    with pytest.raises(DataError, match="no checkpoint can be used(.*\n){2}.*checkpoints/3: dama"):
        checkpoint.load_variables(tmp_path)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("gone", ["variables", "variables/_METADATA", "meta"])
def test_a_best_that_was_copied_in_part_is_reported_and_not_evaluated(
    tmp_path, first, capsys, gone, known
):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save_best(at_step(first, step), {"step": step})
    folder = tmp_path / "checkpoints" / "best" / "2"
    (folder / checksums.FILE).unlink()
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    abstract = state.variables(first) if known else None
    assert checkpoint.load_variables(tmp_path, abstract=abstract)[1] == {"step": 1}
    assert "best/2: damaged, not used" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path}/checkpoints: opening"):
        Checkpointer(tmp_path)


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    # Writing goes on while the donated buffers are used for the next steps.
    state, step, mesh = toy.make_run(mesh=sharding.make_mesh(1, 1))
    batches = toy.Batches()
    arrays = next(batches)
    arrays.pop("id")
    batch = sharding.shard_batch(arrays, mesh)
    with Checkpointer(tmp_path) as checkpoints:
        for _ in range(3):
            expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
            checkpoints.save(state, {})
            for _ in range(20):
                state, _ = step(state, batch)
            checkpoints.wait()
            restored, _ = checkpoints.restore_latest(state)
            jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_thawing_and_running_statistics_go_on_as_if_never_stopped(tmp_path):
    """The count to the thaw and to the next synchronisation are arrays of the state."""
    options = {"sync_period": 3, "freeze": ("encoder/.*",), "freeze_steps": 4}
    options["rates"] = (("norm/.*", 0.5),)
    state, step, mesh = toy.make_run(toy.ToyNet(norm=True), **options)
    fresh = sharding.abstract_like(state)
    straight = []
    for i in range(6):
        if i == 2:
            with Checkpointer(tmp_path) as checkpoints:
                checkpoints.save(state, {"step": 2})
        image, target = toy.make_arrays(i, 4)
        state, _ = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
        straight.append(jax.device_get((state.params, state.batch_stats)))
    with Checkpointer(tmp_path) as checkpoints:
        state, _ = checkpoints.restore_latest(fresh)
    for i in range(2, 6):
        image, target = toy.make_arrays(i, 4)
        state, _ = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
        assert_equal((state.params, state.batch_stats), straight[i])
    kernels = [params.fast["encoder"]["kernel"] for params, _ in straight]
    assert (kernels[3] == kernels[0]).all() and (kernels[4] != kernels[3]).any()
