"""Labels whose names say a side of the body: mirrored, one looks like the other."""

import re
from collections.abc import Sequence

_WORDS = re.compile(r"[A-Za-z]+|[^A-Za-z]+")
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
_OTHER |= {"lh": "rh", "rh": "lh", "lft": "rgt", "rgt": "lft"}
# Short words are sides only if the other side is there too: "R" may be a room, "L" a lobe.
_SURE = {"left", "right"}


def pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(label, what it looks like when it is mirrored) of labels whose names say a side.

    "left kidney", "kidney_left", "Left-Kidney", "leftKidney", "kidney_l" and "lh.kidney" are known.
    A name that says "left" or "right" without its other side is paired with the background: the
    organ's other side is there, unnamed.
    """
    found: dict[str, str] = {}
    known = {name.casefold(): name for name in names}
    for name in names:
        mirrored = _mirrored(name)
        if mirrored is None:
            continue
        other = known.get(mirrored.casefold())
        if other is None and not _SURE & {word.casefold() for word in _words(name)}:
            continue
        if found.get(other or "") != name:
            found[name] = other or "background"
    return tuple(found.items())


def _words(name: str) -> list[str]:
    """Runs of letters and what lies between; capitals begin a word: "leftKidney"."""
    return _WORDS.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "\0", name))


def _mirrored(name: str) -> str | None:
    """The name of the other side; None if it says no side, or both."""
    words = _words(name)
    sides = [i for i, word in enumerate(words) if word.casefold() in _OTHER]
    if len(sides) != 1:
        return None
    words[sides[0]] = _OTHER[words[sides[0]].casefold()]
    return "".join(words).replace("\0", "")
