"""Records that a run reads back: of the form that is expected, whatever is in the file."""

import os

import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.storage import records

FORMS = {"names": records.NAMES, "count": records.COUNT}


def read(path, **options):
    later = {"mb": records.NUMBER}
    return records.read_record(path, FORMS, optional=later, remedy="put it back", **options)


def test_a_record_is_read_with_what_it_has_besides(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"names": ["\\udcfc", "b"], "count": 3, "more": null}')
    assert read(path) == {"names": ["\udcfc", "b"], "count": 3, "more": None}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1]", "expected a JSON object"),
        (b"null", "is null, expected a JSON object"),
        (b"", "not readable JSON"),
        (b'{"names": ["a"]', "not readable JSON"),
        (b'{"names": ["\xff"], "count": 1}', "not readable JSON"),
        (b"[" * 200_000, "not readable JSON"),
        (b'{"names": [], "count": NaN}', "NaN is no JSON number"),
        (b'{"names": [], "count": 1e999}', "1e999 is too large"),
        (b'{"names": [], "count": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"names": [], "names": [], "count": 1}', "'names' is there more than once"),
        (b'{"names": []}', "has no field 'count', expected a whole number"),
        (b'{"names": [1], "count": 1}', r"'names' is \[1\], expected a list of texts, each once"),
        (b'{"names": ["a", "a"], "count": 1}', "each once"),
        (b'{"names": "a", "count": 1}', "expected a list"),
        (b'{"names": [], "count": true}', "'count' is true"),
        (b'{"names": [], "count": -1}', "'count' is -1"),
        (b'{"names": [], "count": 1.5}', "'count' is 1.5"),
        (b'{"names": [], "count": 1' + b"0" * 400 + b"}", "'count' is 10+[.]{3}, expected a wh"),
        (b'{"names": [], "count": 1, "mb": -1' + b"0" * 400 + b"}", "'mb' is -10+[.]{3}, expected"),
    ],
)
def test_what_is_no_such_record_is_named(tmp_path, content, why):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.json: .*{why}.*; put it back"):
        read(path)


def test_what_is_no_file_or_too_large_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name, why in {
        "folder": "is a folder",
        "pipe": "is a named pipe",
        "link": "is a device",
        "huge": "has 1099511627776 bytes, expected at most",
        "absent": "there is no such file",
    }.items():
        with pytest.raises(DataError, match=f"{name}: {why}"):
            read(tmp_path / name)


def test_constants_are_taken_where_a_record_may_hold_them(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"clip_norm": Infinity}')
    assert records.read_record(path, constants=True, remedy="")["clip_norm"] == float("inf")
