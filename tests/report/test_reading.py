"""What the report reads of a run folder: as it was written, or an error that names the file."""

import json
import math

import pytest

from crossdim_jax.errors import DataError
from crossdim_jax.report.reading import read_cases, read_metrics, read_summary
from crossdim_jax.storage import plain

HEAD = ["id", "dice_WT", "hd95_WT", "note"]
ROWS = [["a", 0.9, None, ""], ["=b;-1", -0.5, 3, "shape; differs"]]
SUMMARY = {
    "regions": ["WT"],
    "definitions": {"dice": "2 TP"},
    "n_cases": 2,
    "statistics": {"dice_WT": {"mean": 0.5, "sd": None}},
}


def cases(path):
    rows = read_cases(path)
    return [[None if v != v else v for v in row.values()] for row in rows]


def test_cases_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "cases.csv"
    assert read_cases(path) == []
    path.write_text(plain.csv_text([HEAD, *ROWS]), encoding="utf-8")
    assert cases(path) == ROWS and list(read_cases(path)[0]) == HEAD


@pytest.mark.parametrize(
    "text",
    [
        'id;dice_WT;hd95_WT;note\r\na;0,9;;\r\n"\'=b;\'-1";-0,5;3;"shape; differs"\r\n;;;\r\n',
        '\ufeffid,dice_WT,hd95_WT,note\n"a","0,9","",""\n\'=b;\'-1,"-0,5","3,0",shape; differs\n',
        "id\tdice_WT\thd95_WT\tnote\na\t 0.9\n'=b;'-1\t-0.50\t3\tshape; differs\t\t\n",
        "id,mine,dice_WT,hd95_WT,note,,\na,good,0.9,,,,\n'=b;'-1,,-0.5,3,shape; differs,,\n",
    ],
)
def test_cases_are_read_as_a_spreadsheet_saves_them(tmp_path, text):
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8", newline="")
    assert cases(tmp_path / "cases.csv") == ROWS


def test_moved_columns_are_found_by_their_names(tmp_path):
    (tmp_path / "cases.csv").write_text("note;dice_WT;my_number;id\n;0,25;7;a\n")
    assert read_cases(tmp_path / "cases.csv") == [
        {"id": "a", "dice_WT": 0.25, "my_number": 7.0, "note": ""}
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,dice_WT\na,1\n", "found no column 'id'"),
        ("id,dice_WT\na,1\na,2\n", "case a is there more than once"),
        ("id,dice_WT\na,1,2\n", "case a has more cells than there are columns"),
        ("id,dice_WT\na,0.9 %\n", "dice_WT of case a is '0.9 %', no number"),
        ("id,dice_WT\na,inf\n", "dice_WT of case a is 'inf', no number"),
        ("id,dice_WT\na,1_0\n", "no number"),
        ("id,dice_WT,dice_WT\na,1,2\n", "several columns 'dice_WT'"),
        ('id,dice_WT\n"a,1\n', "truncated or damaged"),
    ],
)
def test_cases_that_cannot_be_meant_are_named_with_the_way_to_make_them_anew(tmp_path, text, why):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataError, match=f"cases.csv: .*{why}.*--mode=evaluate makes it anew"):
        read_cases(tmp_path / "cases.csv")


def test_a_summary_is_read_with_what_later_versions_add(tmp_path):
    path = tmp_path / "summary.json"
    assert read_summary(path) == {}
    path.write_text(json.dumps(SUMMARY | {"later": [1]}))
    assert read_summary(path)["later"] == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"regions": "WT"},
        {"regions": ["WT", "WT"]},
        {"n_cases": None},
        {"n_cases": 2.5},
        {"definitions": {"dice": 3}},
        {"statistics": None},
        {"statistics": {"dice_WT": None}},
        {"statistics": {"dice_WT": {"mean": "0.5"}}},
        {"groups": {"a": {"n_cases": 1}}},
        {"tables": [{"title": "t"}]},
        {"tables": [{"title": "", "shown": True, "columns": ["a"], "rows": [[]], "notes": []}]},
        {"failed": ["a"]},
        {"missing": [["a", 3]]},
        {"truths": ["a"]},
        {"provenance": [1]},
        {"profile": 3},
    ],
    ids=str,
)
def test_a_summary_of_another_form_is_named(tmp_path, change):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | change))
    with pytest.raises(DataError, match=f"summary.json: .*{next(iter(change))}.*evaluate makes"):
        read_summary(tmp_path / "summary.json")


def test_every_field_of_a_summary_that_is_needed_is_asked_for(tmp_path):
    for name in SUMMARY:
        less = {key: value for key, value in SUMMARY.items() if key != name}
        (tmp_path / "summary.json").write_text(json.dumps(less))
        with pytest.raises(DataError, match=f"summary.json: has no field '{name}'"):
            read_summary(tmp_path / "summary.json")


def test_metrics_that_are_no_numbers_are_counted_and_left_out(tmp_path):
    good = {"kind": "train", "step": 1, "epoch": 0.5, "loss": 1.0, "dice_WT": None}
    bad = [{"loss": "1"}, {"epoch": None}, {"epoch": "1"}, {"step": True}, {"x": [1]}]
    bad += [{"epoch": 10**400}, {"loss": -(10**400)}, {"step": 10**400}]
    lines = [json.dumps(good | change) for change in [{}, *bad, {"step": 2, "loss": math.inf}]]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    train, _, unread = read_metrics(path)
    assert [row["loss"] for row in train] == [1.0, None] and unread == len(bad) + 1
