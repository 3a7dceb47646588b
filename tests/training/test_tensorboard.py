"""TensorBoard reads what the metrics file says, also after a resume."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crossdim_jax.errors import ConfigError
from crossdim_jax.training.metric_writer import MetricWriter


def write(folder, rows, **options):
    writer = MetricWriter(folder, tensorboard=True, **options)
    for kind, step, value in rows:
        writer.write({"kind": kind, "step": step, "epoch": step / 2, "loss": value})
    writer.sync()
    writer.close()


def scalars(folder, name="loss"):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag.endswith(name)
    }


def test_every_finite_number_has_its_step(tmp_path):
    write(tmp_path, [("train", 2, 0.5), ("validation", 2, 0.25), ("train", 4, float("nan"))])
    assert scalars(tmp_path) == {"train/loss": [(2, 0.5)], "validation/loss": [(2, 0.25)]}
    assert scalars(tmp_path, "epoch")["train/epoch"] == [(2, 1.0), (4, 2.0)]


def test_after_a_resume_every_step_is_there_once(tmp_path):
    write(tmp_path, [("train", 2, 0.5), ("train", 4, 0.4), ("train", 6, 0.3)])
    write(tmp_path, [("train", 6, 0.25), ("train", 8, 0.125)], step=4)
    found = scalars(tmp_path)["train/loss"]
    assert [step for step, _ in found] == [2, 4, 6, 8]
    assert found[2:] == [(6, 0.25), (8, 0.125)]


def test_begun_half_way_it_has_the_whole_curve_and_spares_other_files(tmp_path):
    before = MetricWriter(tmp_path)
    before.write({"kind": "train", "step": 2, "loss": 0.5})
    before.close()
    (tmp_path / "tensorboard").mkdir()
    other = tmp_path / "tensorboard" / "events.out.tfevents.1.somebody"
    other.write_bytes(b"")
    write(tmp_path, [("train", 4, 0.25)], step=2)
    assert scalars(tmp_path)["train/loss"] == [(2, 0.5), (4, 0.25)]
    assert other.exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "crossdim_jax\[tensorboard\]"'):
        write(tmp_path, [])
