"""The loop between two checkpoints: nothing travels that was not sent on purpose."""

import jax
import numpy as np
import pytest

from crossdim_jax.runtime import sharding
from crossdim_jax.training.loop import fit
from tests import toy


@pytest.fixture
def guarded():
    """Makes a function that forbids implicit transfers, or allows them again."""
    before = jax.config.jax_transfer_guard
    yield lambda on: jax.config.update("jax_transfer_guard", "disallow" if on else before)
    jax.config.update("jax_transfer_guard", before)


@pytest.mark.parametrize("explicit", [True, False])
def test_the_loop_transfers_nothing_implicitly(tmp_path, guarded, explicit, monkeypatch):
    state, step, mesh = toy.make_run(mesh=sharding.make_mesh(2, 2), sync_period=3)
    guards = []

    def on_batch(position):  # after the first steps, until before the end of the epoch
        guarded(2 <= position < 10)
        guards.append(jax.config.jax_transfer_guard)

    if not explicit:  # the guard itself is seen to work: arrays of the host given to the program
        monkeypatch.setattr(sharding, "shard_batch", lambda batch, mesh: batch)

    def run():
        lengths = {"total_steps": 12, "steps_per_epoch": 12, "log_every_steps": 3}
        batches, settings = toy.Batches(on_batch=on_batch), toy.settings(tmp_path, **lengths)
        return fit(state, step, batches, settings, mesh=mesh)

    if explicit:
        assert int(run().state.step) == 12 and guards.count("disallow") == 8
        assert np.isfinite([line["loss"] for line in toy.read_metrics(tmp_path)]).all()
    else:
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            run()
