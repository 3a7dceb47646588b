"""What is said about a config that cannot be read: one line, complete, nothing lost."""

import pytest
from ml_collections import ConfigDict

from crossdim_jax.errors import ConfigError
from crossdim_jax.run import config as config_lib
from crossdim_jax.run import experiment

# ml_collections 1.1 reads config files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)
GOOD = """
from ml_collections import ConfigDict
def get_config(arg=""):
    return ConfigDict({"seed": 0, "model": {"norm": "batch", "name": arg}})
"""


@pytest.fixture
def said(tmp_path):
    """(text of a config file, argument and overrides) -> the message, without the file's path."""

    def read(text, argument="", *overrides):
        path = tmp_path / "x.py"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            config_lib.read(f"{path}{argument}", overrides)
        message = str(caught.value)
        assert message.startswith(f"{path}{argument}: ") and "\n" not in message
        return message.removeprefix(f"{path}{argument}: ")

    return read


def test_argument_and_overrides_reach_the_config(tmp_path):
    (tmp_path / "x.py").write_text(GOOD)
    found = config_lib.read(
        f"{tmp_path}/x.py:abc", ["--config.model.norm=group", "--config.seed=3"]
    )
    assert found.to_dict() == {"seed": 3, "model": {"norm": "group", "name": "abc"}}


def test_quotes_are_kept(said):
    assert said(GOOD, "", "--config.seed=abc").endswith(
        "invalid literal for int() with base 10: 'abc'"
    )
    text = said(GOOD, "", "--config.model.nrm=group")
    assert text == """the config has no such field: 'nrm' Did you mean "norm" instead of "nrm"?"""
    assert said("import nosuch") == "ModuleNotFoundError: No module named 'nosuch'"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError(arg)", "KeyError: 'demo'"),
        ("raise ValueError('it is \"bad\"\\nand worse')", 'ValueError: it is "bad" and worse'),
        ("raise AttributeError('what')", "AttributeError: what"),
        (
            "return open('/gone/x')",
            "FileNotFoundError: [Errno 2] No such file or directory: '/gone/x'",
        ),
        ("return None", "TypeError: get_config() returned None, expected a ConfigDict"),
    ],
)
def test_errors_of_the_program_in_the_file(body, message, said):
    assert said(f"def get_config(arg):\n    {body}\n", ":demo") == message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="gone.py: no such config file"):
        config_lib.read(f"{tmp_path}/gone.py:demo")


@pytest.mark.parametrize("field", config_lib.LATER)
def test_what_an_older_config_lacks_is_what_was_done_before(field, tmp_path):
    """It is filled in for what is built; the config itself is recorded as it was given."""
    config = config_lib.read("configs/chaos_omnianet.py").copy_and_resolve_references().unlock()
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = section[part]
    del section[name]
    before = config.to_dict()
    full = config_lib.complete(config)
    for part in sections:
        full = full[part]
    value = full[name].to_dict() if isinstance(full[name], ConfigDict) else full[name]
    assert value == config_lib.LATER[field]
    made = experiment.build(config, tmp_path)
    assert made.config.to_dict() == before and name not in section
    if field == "augment":
        assert made.augmentation is None
