import os

import pytest

from crossdim_jax.storage.files import duration, replacing, write_text


def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old\n")

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new\n")
    assert path.read_bytes() == b"old\n" and list(tmp_path.iterdir()) == [path]


def test_a_name_of_any_length_and_text_of_any_bytes_can_be_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    write_text(path, "Müller, " + os.fsdecode(b"M\xfcller"))
    assert path.read_text(encoding="utf-8") == r"Müller, M\xfcller"
    with replacing(path) as temporary:
        assert temporary.name.endswith(".tmp.txt") and temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.read_text(encoding="utf-8").startswith("Müller")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (1220, "20 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
