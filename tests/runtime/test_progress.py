import io

import pytest

from crossdim_jax.runtime.progress import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        (io.StringIO, {}, True),
        (Terminal, {"terminal_only": True}, True),
        (io.StringIO, {"terminal_only": True}, False),
        (Terminal, {"enabled": False}, False),
    ],
)
def test_a_bar_passes_its_items_on_and_is_shown_where_it_should_be(kind, options, shown):
    stream = kind()
    assert list(bar("abc", description="predict", stream=stream, **options)) == ["a", "b", "c"]
    assert ("predict: 100%" in stream.getvalue()) is shown


def test_a_log_file_gets_few_lines():
    stream = io.StringIO()
    list(bar(range(10_000), description="predict", stream=stream))
    assert stream.getvalue().count("%") <= 2  # the first and the last
