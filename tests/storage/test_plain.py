"""Tables that a spreadsheet opens without running anything, and that are read as they were."""

import csv
import io
import random

import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.storage import plain

IDS = [
    "BraTS2021_00000",
    '=HYPERLINK("http://x","y")',
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    " =1",
    "'=1",
    "''-a",
    "a;=cmd|' /C calc'!A0",
    "a; '+1",
    "＝1+1",
    "-",
    "1,5",
    "-1.5",
    "007",
    "Müller",
    "M\udcfcller",
    "M\\xfcller",
    "a\nb",
    'a,"b"|c',
    "\x1b[2J",
]


def written(path, rows):
    path.write_text(plain.csv_text(rows), encoding="utf-8", newline="")
    return path


def test_no_cell_is_a_formula_and_every_id_is_read_back(tmp_path):
    path = written(tmp_path / "a.csv", [["id", "x"], *([name, 1.0] for name in IDS)])
    assert [row[0] for row in plain.csv_rows(path, first="id")[1:]] == IDS
    with path.open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    for cell in cells:
        for part in cell.split(";"):
            assert part == "-1.5" or part.lstrip(' "')[:1] not in tuple("=+-@\t\r＝")


def test_any_text_is_read_back(tmp_path):
    rng = random.Random(0)
    letters = "=+-@;' \"\t\r\n\\xfc0\udcfc,|a"
    names = ["".join(rng.choices(letters, k=rng.randrange(1, 9))) for _ in range(3000)]
    names = [name for name in names if name.strip()]
    path = written(tmp_path / "a.csv", [["id", "x"], *([name, 0] for name in names)])
    assert [row[0] for row in plain.csv_rows(path, first="id")[1:]] == names


def test_numbers_stay_numbers():
    rows = [["a", "b", "c", "d"], [-1.5, "-0.25", float("nan"), None], [-3, "+1e-5", "-x", ""]]
    assert plain.csv_text(rows) == "a,b,c,d\n-1.5,-0.25,,\n-3,+1e-5,'-x,\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_as_spreadsheets_save_it(tmp_path, delimiter, encoding, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    rows = [["id", "note"], ["Müller", "a; b, c"], ["'=1", ""]]
    writer.writerows([*rows, ["", ""]])
    path = tmp_path / "a.csv"
    path.write_bytes((f"sep={delimiter}{end}" + text.getvalue()).encode(encoding))
    assert plain.csv_rows(path, first="id") == [*rows[:2], ["=1", ""]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "found no column 'id'"),
        (b"name,note\na,b\n", "found no column 'id'"),
        (b"\x89PNG\r\n\x1a\n\0\0", "found no column"),
        (b"id,note\n" + b"x" * 200_000 + b",\n", "field larger than field limit"),
        (b'id,note\n"a,b\n', "unexpected end of data"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, why):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.csv: .*{why}|{why}"):
        plain.csv_rows(path, first="id")
