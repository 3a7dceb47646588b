import math
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from crossdim_jax import losses
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.runtime import sharding, stop
from crossdim_jax.runtime.stop import Interrupted
from crossdim_jax.training import checkpoint, initialise, journal, loop, optim
from crossdim_jax.training import step as train
from crossdim_jax.training.checkpoint import Checkpointer
from crossdim_jax.training.journal import TrainingError
from crossdim_jax.training.loop import fit
from crossdim_jax.training.validation import Validation
from tests import toy

MODEL = toy.ToyNet(rate=0.2)


@pytest.fixture(scope="module")
def start():
    """A function from a mesh shape to `(state, step, mesh)`; the compiling is done once."""
    optimizer = optim.make(learning_rate=1e-2, sync_period=3)
    mesh = sharding.make_mesh(1, 1)
    host = jax.device_get(
        initialise.init_state(MODEL, optimizer, (1, 8, 6, 4, 1), mesh, seed=0, say=None)
    )
    pure = train.make_train_step(MODEL, optimizer, losses.dice_bce, seed=0)
    steps = {}

    def begin(data=1, depth=1):
        mesh = sharding.make_mesh(data, depth)
        if (data, depth) not in steps:
            steps[data, depth] = train.jit_step(pure, mesh)
        return jax.device_put(host, sharding.replicated(mesh)), steps[data, depth], mesh

    return begin


@pytest.fixture(scope="module")
def cases():
    return toy.make_cases()


def run(start, workdir, batches=None, mesh=(1, 1), validation=None, **options):
    state, step, mesh = start(*mesh)
    batches = batches if batches is not None else toy.Batches()
    settings = toy.settings(workdir, **({"log_every_steps": 4} | options))
    return fit(state, step, batches, settings, mesh=mesh, validation=validation)


def checking(cases, **options):
    return Validation(cases, toy.make_predict(MODEL), toy.encode, **options)


def lines(workdir, *kinds, rates=False):
    """The metrics file without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if rates or k not in ("seconds", "images_per_s")}
        for record in toy.read_metrics(workdir)
        if not kinds or record["kind"] in kinds
    ]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def stop_at(position):
    """Notices a stop while the batch after that at `position` is made: that one's step is saved."""

    def on_batch(at):
        if at == position + 1:
            stop.notice(signal.SIGTERM)

    return toy.Batches(on_batch=on_batch)


@pytest.mark.parametrize("stopped_at", [None, 5, 9])
def test_training_ends_when_validation_no_longer_improves(
    start, cases, tmp_path, monkeypatch, capsys, stopped_at
):
    """Best in epoch 2, so with a patience of 3 epochs it ends after epoch 5; also once resumed."""
    scores = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.1, 12: 0.9}
    steps = iter(scores)
    monkeypatch.setattr(loop, "validate", lambda *_: np.full(2, scores[next(steps)]))
    options = {"validation": checking(cases, from_dice=0.0), "total_steps": 12}
    options["early_stop_epochs"] = 3
    if stopped_at is not None:
        with pytest.raises(Interrupted):
            run(start, tmp_path, stop_at(stopped_at - 1), **options)
    capsys.readouterr()
    result = run(start, tmp_path, progress=True, **options)
    assert int(result.state.step) == 10 and result.best_step == 4
    assert capsys.readouterr().err.count("training ends after step 10") == 1
    assert [record["step"] for record in lines(tmp_path, "train")] == [4, 8, 10]
    assert int(run(start, tmp_path, **options).state.step) == 10  # and it stays ended


@pytest.mark.parametrize(("last", "logged"), [(0.1, [4, 8, 10]), (0.9, [4, 8, 12])])
def test_a_stop_in_the_validation_that_decides_changes_nothing(
    start, cases, tmp_path, monkeypatch, last, logged
):
    scores = {4: 0.7, 10: last}
    options = {"validation": checking(cases, from_dice=0.0), "total_steps": 12}
    options["early_stop_epochs"] = 3

    def going(first=2, stop_at=None):
        steps = iter(range(first, 14, 2))

        def validate(*_):
            step = next(steps)
            if step == stop_at:
                stop.notice(signal.SIGTERM)
            return np.full(2, scores.get(step, 0.5))

        return validate

    monkeypatch.setattr(loop, "validate", going())
    straight = run(start, tmp_path / "straight", **options)
    monkeypatch.setattr(loop, "validate", going(stop_at=10))
    with pytest.raises(Interrupted):
        run(start, tmp_path / "stopped", **options)
    for _ in range(2):  # and once more
        monkeypatch.setattr(loop, "validate", going(first=10))
        result = run(start, tmp_path / "stopped", **options)
    assert_equal(result.state, straight.state)
    assert lines(tmp_path / "straight") == lines(tmp_path / "stopped")
    assert [record["step"] for record in lines(tmp_path / "stopped", "train")] == logged


# 2: in the middle of an epoch and of a logging interval. 3: at the end of an epoch.
@pytest.mark.parametrize("position", [2, 3])
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(start, cases, tmp_path, position):
    validation = checking(cases, from_dice=0.0)
    straight = run(start, tmp_path / "straight", validation=validation)
    with pytest.raises(Interrupted) as caught:
        run(start, tmp_path / "resumed", stop_at(position), validation=validation)
    assert caught.value.step == position + 1 and caught.value.code == 75
    resumed = run(start, tmp_path / "resumed", validation=validation)
    assert_equal(resumed.state, straight.state)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "straight")
    assert (resumed.best_score, resumed.best_step) == (straight.best_score, straight.best_step)


def test_a_run_that_lost_its_last_steps_makes_them_again(start, tmp_path):
    straight = run(start, tmp_path / "straight", total_steps=5)

    def die(at):
        if at == 4:
            raise OSError("the disk with the data is gone")

    with pytest.raises(OSError, match="is gone"):
        run(start, tmp_path / "lost", toy.Batches(on_batch=die), total_steps=5)
    assert [r["step"] for r in toy.read_metrics(tmp_path / "lost")] == [4]
    resumed = run(start, tmp_path / "lost", total_steps=5)
    assert_equal(resumed.state, straight.state)
    assert lines(tmp_path / "lost") == lines(tmp_path / "straight")


def test_a_run_goes_on_with_another_number_of_devices(start, tmp_path):
    straight = run(start, tmp_path / "straight")
    with pytest.raises(Interrupted):
        run(start, tmp_path / "moved", stop_at(2))
    moved = run(start, tmp_path / "moved", mesh=(2, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        jax.device_get(moved.state),
        jax.device_get(straight.state),
    )
    assert len(moved.state.step.sharding.device_set) == 4


def test_a_finished_run_has_nothing_to_do(start, tmp_path):
    once = run(start, tmp_path)
    batches = toy.Batches()
    again = run(start, tmp_path, batches)
    assert batches.position == 6  # set by the resume; none was taken
    assert_equal(again.state, once.state)


def test_a_signal_during_validation_saves_and_validates_later(start, cases, tmp_path):
    predict = toy.make_predict(MODEL)

    def stopping(variables, image):
        stop.notice(signal.SIGINT)
        return predict(variables, image)

    whole = checking(cases, from_dice=0.0)
    straight = run(start, tmp_path / "straight", validation=whole)
    with pytest.raises(Interrupted) as caught:
        run(
            start,
            tmp_path / "stopped",
            validation=Validation(cases, stopping, toy.encode, from_dice=0.0),
        )
    assert caught.value.step == 2
    assert lines(tmp_path / "stopped", "validation") == []
    resumed = run(start, tmp_path / "stopped", validation=whole)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    assert resumed.best_score == straight.best_score


def test_a_best_whose_weights_are_lost_is_no_longer_to_be_beaten(start, cases, tmp_path):
    def perfect(variables, image):
        return np.concatenate([image > 0.3, image > 0.9], -1).astype(np.float32)

    oracle = Validation(cases, perfect, toy.encode, from_dice=0.0)
    with pytest.raises(Interrupted):
        run(start, tmp_path, stop_at(3), validation=oracle)
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    result = run(start, tmp_path, validation=checking(cases, from_dice=0.0))
    assert result.best_step == 6 and result.best_score < 1
    assert checkpoint.load_variables(tmp_path)[1]["score"] == result.best_score


@pytest.mark.parametrize("scored_over", [None, loop.PRESENT])
@pytest.mark.parametrize("lacking", [False, True])
def test_a_best_that_counts_classes_which_no_case_has_is_forgotten_once(
    start, cases, tmp_path, monkeypatch, capsys, scored_over, lacking
):
    """(0.8 + 0.8 + 1) / 3 of an earlier version is no more than 0.85 of what is there."""
    if lacking:
        cases = [toy.Case(c.id, c.image, np.minimum(c.label, 1)) for c in cases]
    scores = {2: 0.9, 4: 0.85, 6: 0.84}
    steps = iter(scores)
    monkeypatch.setattr(loop, "validate", lambda *_: np.array([scores[next(steps)], np.nan]))
    monkeypatch.setattr(loop, "PRESENT", scored_over)  # None: as an earlier version leaves it
    with pytest.raises(Interrupted):
        run(start, tmp_path, stop_at(2), validation=checking(cases, from_dice=0.0))
    monkeypatch.undo()
    monkeypatch.setattr(loop, "validate", lambda *_: np.array([scores[next(steps)], np.nan]))
    result = run(start, tmp_path, validation=checking(cases, from_dice=0.0), progress=True)
    forgotten = lacking and scored_over is None
    assert (result.best_score, result.best_step) == ((0.85, 4) if forgotten else (0.9, 2))
    assert checkpoint.load_variables(tmp_path)[1]["step"] == result.best_step
    said = "best score up to now, 0.900 of step 2, counts classes that no validation case has"
    assert capsys.readouterr().err.count(said) == forgotten


def test_no_score_is_never_better_and_always_beaten(start, cases, tmp_path, monkeypatch):
    for name, scores, best in (
        ("first", [math.nan, math.nan, 0.1], 6),
        ("later", [0.1, math.nan, 0.05], 2),
        ("only", [math.nan] * 3, 2),
    ):
        found = iter(scores)
        monkeypatch.setattr(loop, "validate", lambda *_, found=found: np.full(2, next(found)))
        validation = checking(cases, from_dice=0.0)
        assert run(start, tmp_path / name, validation=validation).best_step == best
        assert checkpoint.load_variables(tmp_path / name)[1]["step"] == best


def test_logged_numbers_are_means_over_their_steps(start, tmp_path):
    run(start, tmp_path / "each", log_every_steps=1)
    run(start, tmp_path / "three", log_every_steps=3)
    each, three = lines(tmp_path / "each"), lines(tmp_path / "three")
    assert [record["step"] for record in three] == [3, 6]
    assert [record["epoch"] for record in three] == [1.5, 3.0]
    for key in ("loss", "dice_WT", "dice_TC", "dice"):
        np.testing.assert_allclose(three[1][key], np.mean([r[key] for r in each[3:]]), rtol=1e-6)
    assert three[1]["learning_rate"] == pytest.approx(1e-2)
    record = toy.read_metrics(tmp_path / "three")[0]
    assert record["images_per_s"] > 0 and record["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"from_dice": 0.0}, [2, 4, 6]),
        ({"from_dice": 0.0, "every_epochs": 2}, [4, 6]),
        ({"from_dice": 2.0}, [6]),  # never reached, but a training ends with a validation
    ],
)
def test_when_validation_is_made(start, cases, tmp_path, options, steps):
    run(start, tmp_path, validation=checking(cases, **options))
    assert [record["step"] for record in lines(tmp_path, "validation")] == steps


def test_the_gate_opens_by_the_mean_training_dice_of_an_epoch_and_stays_open(
    start, cases, tmp_path
):
    run(start, tmp_path / "look", log_every_steps=2)
    by_epoch = [record["dice"] for record in lines(tmp_path / "look")]
    threshold = (by_epoch[0] + by_epoch[1]) / 2
    assert by_epoch[0] < threshold < by_epoch[1]
    validation = checking(cases, from_dice=threshold)
    with pytest.raises(Interrupted):  # opened at 4, and saved as open in mid-epoch
        run(start, tmp_path / "gate", stop_at(4), validation=validation, total_steps=8)
    closed = checking(cases, from_dice=2.0)
    run(start, tmp_path / "gate", validation=closed, total_steps=8)
    assert [record["step"] for record in lines(tmp_path / "gate", "validation")] == [4, 6, 8]


def test_the_mean_of_an_epoch_survives_a_stop_in_its_middle(start, cases, tmp_path):
    run(start, tmp_path / "look", log_every_steps=1)
    third, fourth = [record["dice"] for record in lines(tmp_path / "look")][2:4]
    assert third != fourth
    # A threshold that the epoch's mean and its last step lie on two sides of.
    validation = checking(cases, from_dice=third / 4 + 3 * fourth / 4)
    run(start, tmp_path / "straight", validation=validation, total_steps=5)
    with pytest.raises(Interrupted):
        run(start, tmp_path / "stopped", stop_at(2), validation=validation, total_steps=5)
    run(start, tmp_path / "stopped", validation=validation, total_steps=5)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")


def test_the_best_validation_is_kept_with_its_slow_weights(start, cases, tmp_path):
    predict, calls = toy.make_predict(MODEL), []

    def worse_later(variables, image):
        calls.append(jax.device_get(variables))
        return predict(variables, image) * (1.0 if len(calls) <= len(cases) else 0.0)

    result = run(
        start, tmp_path, validation=Validation(cases, worse_later, toy.encode, from_dice=0.0)
    )
    scores = [record["dice"] for record in lines(tmp_path, "validation")]
    assert scores[0] > scores[1] == scores[2]
    variables, meta = checkpoint.load_variables(tmp_path)
    assert_equal(variables, calls[0])
    assert meta["score"] == result.best_score == scores[0] and meta["step"] == 2
    latest, _ = checkpoint.load_variables(tmp_path, best=False)
    assert_equal(latest["params"], result.state.params.slow)


def test_checkpoints_are_no_part_of_the_rate(start, tmp_path, monkeypatch):
    """By a clock on which a batch takes a second, and a checkpoint an hour."""
    save, clock = Checkpointer.save, [0.0]

    def passes(seconds):
        clock[0] += seconds

    def slow(*args):
        passes(3600)
        return save(*args)

    monkeypatch.setattr(journal, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Checkpointer, "save", slow)
    run(start, tmp_path, toy.Batches(batch=4, on_batch=lambda _: passes(1)), total_steps=8)
    last = lines(tmp_path, rates=True)[-1]
    assert last["images_per_s"] == 4 and last["seconds"] == 8 + 3 * 3600  # before the fourth


def test_a_loss_that_is_not_finite_stops_and_names_step_and_cases(start, tmp_path):
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan") as caught:
        run(start, tmp_path, toy.Batches(spoil_at=3))
    assert "case_3_0, case_3_1, case_3_2, case_3_3" in str(caught.value)
    with Checkpointer(tmp_path) as checkpoints:  # nothing spoilt was saved
        assert checkpoints.steps == [2]


def test_the_config_is_in_every_checkpoint(start, cases, tmp_path):
    run(start, tmp_path, config={"seed": 3}, validation=checking(cases))
    for best in (True, False):
        assert checkpoint.load_variables(tmp_path, best=best)[1]["config"] == {"seed": 3}


def test_lengths_out_of_range_are_refused(start, tmp_path):
    with pytest.raises(ConfigError, match="log_every_steps=0"):
        run(start, tmp_path, log_every_steps=0)


def test_steps_per_epoch_rounds_up():
    assert [loop.steps_per_epoch(n, 4) for n in (1, 4, 5)] == [1, 1, 2]


def test_the_loop_fetches_nothing_of_the_step_it_has_just_dispatched(start, tmp_path):
    # Step n is dispatched before the metrics of step n - 1 are read, and n's own are not yet.
    state, step, mesh = start()
    events = []

    class Watched:
        def __init__(self, number, value):
            self.number, self.value = number, value

        def __array__(self, dtype=None, copy=None):
            events.append(f"read {self.number}")
            return np.asarray(self.value, dtype)

    def watching(state, batch):
        number = len([e for e in events if e.startswith("dispatch")]) + 1
        events.append(f"dispatch {number}")
        state, metrics = step(state, batch)
        total, count = metrics["loss"]
        return state, metrics | {"loss": (Watched(number, total), count)}

    settings = toy.settings(tmp_path, total_steps=3, steps_per_epoch=100)
    fit(state, watching, toy.Batches(), settings, mesh=mesh)
    order = [e for i, e in enumerate(events) if e not in events[:i]]
    assert order == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3"]


def test_a_run_folder_that_cannot_be_written_is_named(start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/checkpoints"):
        run(start, tmp_path / "file")
