"""Files opened so that nothing in a folder can stop a run, and read so that no header can fill the memory."""

import io
import os
import stat

from fr_deploy.errors import ImageError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class OpenedFile(io.BufferedReader):
    """A regular file, open for reading. While `left` is set, no more bytes than that are read: ValueError."""

    left: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file; above `left` bytes raise ValueError, without having read more than one above."""
        if self.left is None:
            return super().read(size)
        most = self.left + 1
        data = super().read(most if size is None or size < 0 else min(size, most))
        if len(data) > self.left:
            raise ValueError("its headers are larger than any honest file's")
        self.left -= len(data)
        return data


def open_regular(path: str) -> OpenedFile:
    """Open a file without ever blocking: a FIFO or a device must not stop a run.

    Raises:
        ImageError: reason `unreadable`, it is no regular file.
        OSError: as of `os.open`.
    """
    _check_kind(os.stat(path).st_mode)  # before it is opened: that alone can rewind a tape
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    raw = io.FileIO(os.open(path, flags), "rb")
    try:
        _check_kind(os.fstat(raw.fileno()).st_mode)
        return OpenedFile(raw)
    except BaseException:
        raw.close()
        raise


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((text for test, text in _KINDS if test(mode)), "something else")
        raise ImageError("unreadable", f"is {kind}, not a regular file")
