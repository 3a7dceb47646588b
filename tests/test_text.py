"""Names of any bytes as they are shown, and messages without the folders of the machine."""

import io
import os
import random

import pytest

from crossdim_jax.text import encoded, for_stream, shown, unshown, without_folders, without_paths

LATIN1 = os.fsdecode(b"M\xfcller")


@pytest.mark.parametrize(
    ("name", "visible"),
    [
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("Müller 日本 (2)", "Müller 日本 (2)"),
        (LATIN1, r"M\xfcller"),
        (r"M\xfcller", r"M\x5cxfcller"),
        ("a\x1b[2Jb\nc\td", r"a\x1b[2Jb\x0ac\x09d"),
        ("a\u202eb\u2028c\x85", r"a\u202eb\u2028c\u0085"),
        ("a\\b", "a\\b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_name_is_shown_and_found_again(name, visible):
    assert shown(name) == visible and visible.isprintable()
    assert unshown(visible) == name


def test_any_name_is_found_again():
    rng = random.Random(0)
    for _ in range(3000):
        letters = rng.choices(
            "\\xu0189abcdf\n\x1b\xfc\udcfc\udc80\ud800\u2028 ", k=rng.randrange(12)
        )
        name = "".join(letters)
        assert unshown(shown(name)) == name
        assert encoded(shown(name)).decode() == shown(name)


def test_a_stream_of_any_encoding_gets_lines_it_can_print():
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream.write(for_stream(f"one {LATIN1}\n\x1b]0;x\x07 – Müller", stream))
        stream.flush()
        first, second = stream.buffer.getvalue().decode(encoding).splitlines()
        assert first == r"one M\xfcller" and second.startswith(r"\x1b]0;x\x07 ")


def test_messages_name_files_without_the_folders_above_them():
    own = ["/home/jane doe/data/pat 1/pat 1_seg.nii.gz"]
    for text, told in (
        ("/home/jane doe/data/pat 1/pat 1_seg.nii.gz: torn", "pat 1_seg.nii.gz: torn"),
        ("/home/jane doe/data/pat 1: is empty", "pat 1: is empty"),
        ("[Errno 2] no: '/home/jane doe/other/x.txt'", "[Errno 2] no: 'other/x.txt'"),
        ("neither /srv/hospital/a.dcm nor ~eve/b/c", "neither .../a.dcm nor .../c"),
        ("see https://example.org/a/b, 3/4 of 20/30/40", None),
        ("a stride of /2 and and/or", None),
    ):
        assert without_folders(text, own) == (told or text)


PATTERNS = [
    *(".*/conv_stem/kernel", ".*/blocks_./kernel", "(?!head/).*/conv/kernel", "blocks_[56]/a/b"),
    *("(a|b)/conv/kernel", ".*(/conv/kernel|/bn/scale)", ".{2}/conv/x", r".+\d+/conv/bias=center"),
]


def test_a_config_names_no_folders():
    config = {
        "data": {"root": "/home/eve/brats", "cache": "~/cache/x", "patch": (64, 64)},
        "weights": {"file": "../../eve/w.safetensors", "skip": ["head/.*"]},
        "note": "from /srv/secret/place of 1/2",
        "home": ["/home/eve", "~eve", "/root"],
        "relative": "data/brats",
        "patterns": PATTERNS,
        "note of a pattern": "like .*/conv/kernel in /srv/secret/place, (a):/home/eve/b",
    }
    assert without_paths(config) == {
        "data": {"root": ".../brats", "cache": ".../x", "patch": [64, 64]},
        "weights": {"file": ".../w.safetensors", "skip": ["head/.*"]},
        "note": "from .../place of 1/2",
        "home": ["..."] * 3,
        "relative": "data/brats",
        "patterns": PATTERNS,
        "note of a pattern": "like .*/conv/kernel in .../place, (a):.../b",
    }
