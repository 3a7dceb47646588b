from crossdim_jax.report import tables

COLUMN = {"mean": 0.91234, "sd": None, "median": 0.9, "q25": 0.85, "q75": 0.95, "n": 4, "n_nan": 1}
SUMMARY = {
    "challenge": "brats",
    "profile": "brats2022",
    "aggregation": "clean",
    "definitions": {"dice": "2 TP / ...", "hd95": "95th percentile of |this|"},
    "regions": ["WT", "TC"],
    "n_cases": 5,
    "statistics": {
        **{f"dice_{r}": COLUMN for r in ("WT", "TC")},
        **{f"hd95_{r}": COLUMN | {"mean": 3.14159} for r in ("WT", "TC")},
    },
    "mismatched": [["case|1", "shape\ndiffers"]],
    "failed": [],
    "missing": [],
}


def test_ratios_in_per_cent_and_distances_as_they_are():
    dice, hd95 = tables.grid(SUMMARY, "dice"), tables.grid(SUMMARY, "hd95")
    assert dice[0] == ["Dice (%)", "WT", "TC"]
    assert dice[1] == ["Mean", "91.23", "91.23"]
    assert hd95[1] == ["Mean", "3.14", "3.14"]
    assert [row[0] for row in dice[1:]] == [
        "Mean",
        "SD",
        "Median",
        "25th percentile",
        "75th percentile",
        "n",
    ]


def test_what_is_undefined_is_a_dash_and_counted():
    grid = tables.grid(SUMMARY, "dice")
    assert grid[2][1] == "–"
    assert grid[-1][1] == "4 (+1 undefined)"
    assert tables.cell(float("nan"), "dice") == "–"
    assert tables.grid(SUMMARY | {"regions": ["ET"]}, "dice")[1] == ["Mean", "–"]


def test_markdown_keeps_its_columns_and_lines():
    text = tables.markdown(SUMMARY)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * 8 and {row.count("|") for row in rows} == {4}
    assert "- case\\|1: shape differs" in text
    assert "- HD95 (voxels): 95th percentile of \\|this\\|" in text
    assert "Metric profile: brats2022" in text and "Aggregation: clean" in text
    assert "1 of the cases scored as a mismatch" in text and "not scored" not in text


def test_html_escapes_and_marks_headings():
    text = tables.to_html([["<b>", "a&b"], ["x", "1"]], caption="<i>")
    assert "<b>" not in text and "<i>" not in text and "a&amp;b" in text
    assert text.count('scope="col"') == 2 and text.count('scope="row"') == 1
