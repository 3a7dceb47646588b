"""The gate for files of unknown origin: regular files only, and no more bytes than were promised.

Every reader of the project opens its files here. A header may claim any size: it is compared with
the bytes that are there before memory is asked for, and decompression stops at what was promised.
"""

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from crossdim_jax.errors import CrossdimError, DataError

DEFLATE_RATIO = 1032  # what deflate makes of one byte at the most (zlib's technical notes)
_WINDOW = {"gzip": 31, "zlib": 15, "deflate": -15}  # zlib's `wbits`
_PIECE = 1 << 20
AGAIN = "copy or download it again"


def open_regular(path: str | os.PathLike, *, inside: str | os.PathLike | None = None) -> BinaryIO:
    """Opens a regular file for reading; never waits for a pipe, never reads a device.

    Args:
      path: of the file; links are followed.
      inside: a folder that the file must lie in, links followed, where the name comes from another
        file rather than from the user.

    Raises DataError, naming the file, if it is missing, cannot be opened, is no regular file, or
    lies elsewhere.
    """
    path = Path(path)
    with naming(path):
        if inside is not None:
            folder = Path(inside).resolve()
            if not path.resolve().is_relative_to(folder):
                raise DataError(
                    f"{path}: lies outside {folder}; a header may only name files beside it"
                )
        # A pipe without a writer would be waited for otherwise.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(number).st_mode
            if not stat.S_ISREG(mode):
                kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
                raise DataError(f"{path}: is {kind}; a regular file is expected")
            return os.fdopen(number, "rb")
        except BaseException:
            os.close(number)
            raise


def beside(header: Path, name: str) -> Path:
    """Path of a file that a header names: in its folder, or in that of the file it is a link to."""
    places = [folder / name for folder in (header.parent, header.resolve().parent)]
    return next((path for path in places if os.path.lexists(path)), places[0])


def open_beside(header: Path, path: Path) -> BinaryIO:
    """Opens a file that a header names, see `open_regular` and `beside`.

    Raises DataError, naming the file, also if it lies in neither folder, links followed: a user may
    link a header and its voxels, but no header leads away from its own folder.
    """
    with naming(path):
        folders, real = (header.parent.resolve(), header.resolve().parent), path.resolve()
        own = next((folder for folder in folders if real.is_relative_to(folder)), folders[0])
    return open_regular(path, inside=own)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_bytes(
    path: str | os.PathLike,
    *,
    limit: int | None = None,
    inside: str | os.PathLike | None = None,
) -> bytes:
    """The content of a regular file, see `open_regular`.

    Args:
      limit: the most bytes that such a file may have; None for no limit but the file's own size.

    Raises DataError as `open_regular`, or if the file is larger than `limit`.
    """
    with open_regular(path, inside=inside) as file, naming(path):
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise DataError(f"{path}: has {size} bytes, expected at most {limit}")
        return file.read(size)


class Inflater:
    """A compressed stream, read forwards piece by piece; holds no more than what is asked for.

    Args:
      path: of the file, for messages.
      content: the whole compressed stream, with its header and checksum if the form has them.
      form: "gzip" (one member after another), "zlib" or "deflate" (neither header nor checksum).
    """

    def __init__(self, path: str | os.PathLike, content: bytes | memoryview, form: str):
        self.path, self.form = Path(path), form
        self._content, self._at = memoryview(content), 0
        self._stream = zlib.decompressobj(_WINDOW[form])
        self.done = 0  # bytes given out

    def check_possible(self, size: int) -> None:
        """Raises DataError if the stream is too short to hold `size` bytes, whatever they are."""
        packed = len(self._content)
        if size > (most := packed * DEFLATE_RATIO):
            raise DataError(
                f"{self.path}: its header promises {size} bytes, but {packed} compressed bytes "
                f"hold at most {most}; the file is truncated or damaged, {AGAIN}"
            )

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the stream; checksums are compared there.

        Raises DataError if the stream is damaged or ends in the middle.
        """
        self.check_possible(self.done + size)
        return self._read(size)

    def finish(self, *, slack: int = 0) -> None:
        """Raises DataError unless the stream ends here, but for `slack` bytes, and is undamaged."""
        if len(self._read(slack + 1)) > slack:  # which nobody promised: there may be fewer
            raise DataError(
                f"{self.path}: holds more bytes than its header promises ({self.done} and more); "
                f"it is damaged or not what it says it is, {AGAIN}"
            )

    def _read(self, size: int) -> bytes:
        pieces, missing = [], size
        try:
            while missing and not (self._stream.eof and not self._next_member()):
                pieces.append(self._step(min(missing, _PIECE)))
                missing -= len(pieces[-1])
        except zlib.error as error:
            raise DataError(
                f"{self.path}: the compressed data are truncated or damaged ({error}); {AGAIN}"
            ) from error
        self.done += size - missing
        return b"".join(pieces)

    def _step(self, most: int) -> bytes:
        feed = self._stream.unconsumed_tail
        if not feed:  # a small piece of input at a time: what is not used at once is copied
            feed = self._content[self._at : self._at + 65536]
            self._at += len(feed)
        piece = self._stream.decompress(feed, most)
        if not (feed or piece or self._stream.eof):
            raise zlib.error("it ends in the middle")
        return piece

    def _next_member(self) -> bool:
        """Goes on to the next member of a gzip file; False where there is none."""
        if self.form != "gzip":
            return False
        begin = self._at - len(self._stream.unused_data)
        while begin < len(self._content) and self._content[begin] == 0:
            begin += 1  # padding behind a member
        if begin == len(self._content):
            return False
        self._at, self._stream = begin, zlib.decompressobj(_WINDOW[self.form])
        return True


@contextlib.contextmanager
def naming(path: str | os.PathLike, expected: str = "") -> Iterator[None]:
    """Context manager in which every error leaves as a DataError that names the file.

    Libraries raise anything for a damaged file; errors of this project pass as they are.

    Args:
      path: of the file that is being read.
      expected: what it should be, such as "a NIfTI volume".
    """
    should = f"; {expected} is expected" if expected else ""
    try:
        yield
    except CrossdimError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file{should}") from error
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory{should}") from error
    except OSError as error:
        if error.errno is not None:
            odd = error.errno in (errno.ENXIO, errno.ENODEV)  # a socket, a device without driver
            why = "is no regular file" if odd else f"cannot be read ({error.strerror or error})"
            raise DataError(f"{path}: {why}{should}") from error
        raise DataError(_damaged(path, error, should)) from error
    except Exception as error:
        raise DataError(_damaged(path, error, should)) from error


def _damaged(path: str | os.PathLike, error: Exception, should: str) -> str:
    text = " ".join(str(error).split())[:300]
    return (
        f"{path}: cannot be read, the file is truncated or damaged "
        f"({type(error).__name__}: {text}){should}; {AGAIN}"
    )
