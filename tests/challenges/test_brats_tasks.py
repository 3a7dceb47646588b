"""Tasks of BraTS whose labels mean something else, told from their names."""

import pytest

from crossdim_jax.challenges.brats.challenge import BraTS
from crossdim_jax.errors import ConfigError
from tests.brats_folders import FOUR, GLI, ids


@pytest.mark.parametrize(
    ("case", "convention", "says"),
    [
        ("BraTS-PED-00001-000", "2024", "task PED.*convention '2024' .none here fits.*GLI, SSA"),
        ("BraTS-MEN-RT-0001-1", "2023", "task MEN-RT.*none here fits"),
        ("BraTS-XYZ-00001-000", "2023", "task XYZ"),
        ("BraTS-SSA-00001-000", "2024", "task SSA.*convention '2023' fits"),
        ("BraTS-SSA-00001-000", "2023", None),
        ("BraTS-MEN-00001-000", "2023", None),
        ("BraTS-MET-00001-000", "2024", None),
        ("BraTS-GoAT-00001", "2023", None),
        ("brats-gli-00001-000", "2024", None),
        ("BraTS-GLI-00001-000", "2021", "task GLI.*convention '2021' .convention '2023' or '2024'"),
        ("BraTS-GLI-00001-000", "2015", "task GLI"),
        ("BraTS-MET-00001-000", "msd", "task MET"),
    ],
)
@pytest.mark.parametrize("layout", ["2023", "auto"])
def test_labels_of_a_task_are_read_only_if_they_are_known(
    tmp_path, write_case, caplog, case, convention, says, layout
):
    write_case(tmp_path, case, GLI, separator="-")
    challenge = BraTS(layout, convention)
    if says is None:
        assert ids(challenge.cases(tmp_path, labelled=True)) == [case] and not caplog.text
        return
    with pytest.raises(ConfigError, match=says):
        challenge.cases(tmp_path, labelled=True)
    # Its images may be predicted, in this convention.
    assert ids(challenge.cases(tmp_path, labelled=False)) == [case]
    assert f"Predictions are written in convention '{convention}'" in caplog.text


@pytest.mark.parametrize("case", ["BraTS2021_00000", "BraTS20_Training_001", "BraTS19_X_1"])
@pytest.mark.parametrize("layout", ["2021", "auto"])
def test_labels_of_early_releases_are_not_read_by_numbers_that_mean_something_else(
    tmp_path, write_case, caplog, case, layout
):
    write_case(tmp_path, case, FOUR)
    for convention in ("2015", "2021", "2023"):  # a 4 is refused in the last
        assert ids(BraTS(layout, convention).cases(tmp_path, labelled=True)) == [case]
    for convention in ("2024", "msd"):  # there 4 is a cavity; 1 and 2 are the other way round
        with pytest.raises(ConfigError, match=f"{case} is of BraTS 2017 to 2021.*'{convention}'"):
            BraTS(layout, convention).cases(tmp_path, labelled=True)
        plain = BraTS("plain", convention, FOUR)
        assert ids(plain.cases(tmp_path, labelled=True)) == [case]
        assert not caplog.text
        assert ids(BraTS(layout, convention).cases(tmp_path, labelled=False)) == [case]
        assert f"Predictions are written in convention '{convention}'" in caplog.text
        caplog.clear()


def test_labels_of_the_decathlon_are_not_read_by_another_convention(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"])
    for convention in ("2015", "2021", "2023", "2024"):
        with pytest.raises(ConfigError, match="BRATS_001 is of the decathlon.*'msd' fits"):
            BraTS("msd", convention).cases(tmp_path, labelled=True)


def test_a_task_is_told_in_the_plain_layout_and_among_others(tmp_path, write_case):
    for case in ("BraTS-GLI-00001-000", "BraTS-PED-00001-000"):
        write_case(tmp_path, case, ("t1", "t2"))
    with pytest.raises(ConfigError, match="BraTS-PED-00001-000 is of the BraTS task PED"):
        BraTS("plain", "2023", ("t1", "t2")).cases(tmp_path, labelled=True)
