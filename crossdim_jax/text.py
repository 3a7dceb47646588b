"""Text that leaves the machine or meets a terminal: names as they can be shown, and no paths."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

# Bytes of a name that are not UTF-8 (Python holds them as surrogates), control characters, line
# separators, and marks that turn the direction of writing. A backslash that could be taken for the
# beginning of an escape is escaped itself, so that `unshown` finds the name again.
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_HIDDEN = re.compile(rf"[{_CONTROL}]|\\(?=x[0-9a-f]{{2}}|u[0-9a-f]{{4}})")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")
# A path from the root, of two parts or more, at the beginning of a word.
_PATH = re.compile(r"(?<![\w./\\~-])(?:file://|~[\w.-]*(?=/))?(?:/[^\s/:;,'\"()<>|]+){2,}/?")
# What stands in the word before a slash of a regular expression: `.*`, or the end of a group, a
# set or a repetition just before it.
_IN_PATTERN = re.compile(r"(?:\.[*+]\S*|[*+?)\]}])\Z")


def shown(text: str, *, keep: str = "") -> str:
    r"""Text in which all is visible: a byte that is not UTF-8 becomes `\xfc`, an escape `\x1b`.

    keep: characters that stay as they are, such as line ends.
    """
    return _HIDDEN.sub(lambda m: m[0] if m[0] in keep else _escape(ord(m[0])), text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as `os.fsdecode` holds it
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF:  # a character, which must not be taken for that byte
        return f"\\u{code:04x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def unshown(text: str) -> str:
    """The text that `shown` was given."""

    def character(match: re.Match) -> str:
        byte, code = match.groups()
        if code:
            return chr(int(code, 16))
        value = int(byte, 16)
        return chr(value if value < 0x80 else 0xDC00 + value)

    return _ESCAPE.sub(character, text)


def for_stream(text: str, stream: TextIO) -> str:
    """Lines that this stream can print, whatever its encoding, without orders to the terminal."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    visible = shown(text, keep="\n\t")
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text, which may be of files of any origin, as `for_stream` does; None: on stdout."""
    stream = stream or sys.stdout
    print(for_stream(text, stream), file=stream)


class Visible(logging.Filter):
    """Filter of a log handler that shows each message as `for_stream` would, traceback and all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record's message; lets all pass."""
        record.msg, record.args = shown(record.getMessage(), keep="\n\t"), ()
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
            record.exc_text = shown(traceback, keep="\n\t")
        return True


def make_visible(handler: logging.Handler) -> None:
    """Shows what a log handler and Python's warnings print as `for_stream` would."""
    handler.addFilter(Visible())
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args: shown(plain(*args), keep="\n\t")


def encoded(text: str) -> bytes:
    r"""UTF-8; what cannot be encoded, such as a byte of a name that is no UTF-8, becomes `\xfc`."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", lambda m: _escape(ord(m[0])), text).encode("utf-8")


def without_folders(text: str, paths: Iterable[str | os.PathLike] = ()) -> str:
    """A message whose files are named without the folders above them.

    paths: files and folders that may be named in it, with blanks in their names or without; each
      is named from the folder that holds it. Of any other absolute path the last part is left.
    """
    return _PATH.sub(lambda m: _last(m[0]), _from_their_folder(text, paths))


def _from_their_folder(text: str, paths: Iterable[str | os.PathLike]) -> str:
    folders = {folder for path in paths for folder in _above(Path(path))}
    for folder in sorted(folders, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", text)
    for folder in sorted(folders, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?![\w-])", Path(folder).name, text)
    return text


def _above(path: Path) -> set[str]:
    """The folders above a path, as it is given and with links followed."""
    forms = {path, Path(os.path.abspath(path)), Path(os.path.realpath(path))}
    return {str(folder) for form in forms for folder in form.parents if len(folder.parts) > 1}


def _last(path: str) -> str:
    parts = [part for part in path.removeprefix("file:").split("/") if part]
    at_home = len(parts) < 2 or len(parts) == 2 and parts[0] in ("home", "Users")
    if path.startswith(("/home", "/Users", "/root", "~")) and at_home:
        return "..."  # its last part is the name of a user
    return f".../{parts[-1]}"


def without_paths(value: Any, paths: Iterable[str | os.PathLike] = ()) -> Any:
    """Plain values, such as a config, in which a path is `.../` and its last part.

    A relative path that climbs out of the folder it starts from counts as one. paths: as in
    `without_folders`, which cleans other text. A pattern for the names of parameters, such as
    `.*/conv_stem/kernel`, stays what it is.
    """
    paths = list(paths)
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): without_paths(item, paths) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item, paths) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~", "../", "file:")) or "/../" in value:
        return _last(value.split("\n")[0]) if value.strip("/~.") else "..."

    def cut(match: re.Match) -> str:
        pattern = _IN_PATTERN.search(value, 0, match.start())
        return match[0] if pattern else _last(match[0])

    value = _from_their_folder(value, paths)
    return _PATH.sub(cut, value)
