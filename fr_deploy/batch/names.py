"""Names of items and of their outputs: relative, below the destination, and what an ordinary file system can hold."""

import os
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

from fr_deploy.errors import ImageError, UsageError
from fr_deploy.inputs import MAX_DEPTH, Inputs, Refusal, output_name
from fr_deploy.photo import SUFFIXES

MAX_PART = 255
"""Bytes of one part of a name: what ext4, XFS and most others hold."""
MAX_NAME = 3072
"""Bytes of a whole name; a path may have 4096, and the destination's is a part of it."""
STATE_FOLDER = ".fr-deploy"
"""Of a destination; no output may lie there."""
KEPT_REFUSALS = 1000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Naming:
    """How outputs are called.

    Raises:
        UsageError: `ext` cannot be written, or `suffix` is no part of a file name.
    """

    ext: str | None = None
    """Suffix of all outputs without the dot; by default each input's own."""
    suffix: str = ""
    """Put behind the stem, such as `_restored`."""
    spare: int = 0
    """Bytes a name must leave of its 255, for what is put behind the stem later (`-face12`)."""

    def __post_init__(self) -> None:
        if self.ext is not None and f".{self.ext}".lower() not in SUFFIXES:
            allowed = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UsageError(f"the suffix of outputs is {self.ext!r}; allowed are {allowed}")
        if "/" in self.suffix or "\0" in self.suffix:
            raise UsageError(f"--suffix is {self.suffix!r}; it must be a part of a file name")

    def output(self, name: str) -> str:
        """The output of an item.

        Args:
            name: as `relative_name` returns it.

        Raises:
            ImageError: reason `unsafe_name` or `name_too_long`.
        """
        return self.checked(str(output_name(PurePath(name), self.ext, self.suffix)))

    def checked(self, output: str) -> str:
        """An output that was named outright, tidied.

        Raises:
            ImageError: reason `unsafe_name`, `name_too_long`, `too_deep`, or `unsupported_format`.
        """
        output = relative_name(output, MAX_PART - self.spare)
        if output.split("/", 1)[0] == STATE_FOLDER:
            raise ImageError("unsafe_name", f"would be written into {STATE_FOLDER}, which is ours")
        if os.path.splitext(output)[1].lower() not in SUFFIXES:
            allowed = ", ".join(SUFFIXES)
            raise ImageError(
                "unsupported_format", f"cannot write {output!r}: allowed are {allowed}"
            )
        return output


@dataclass
class Notes:
    """What a listing passed over."""

    refusals: list[Refusal] = field(default_factory=list[Refusal])
    """The first 1,000."""
    refused: int = 0
    """How many there were."""
    ignored: int = 0
    """Files in folders and archives that are no photos by their name, or hidden."""

    def refuse(self, name: str, reason: str, message: str) -> None:
        """Note one thing that holds no photo, or none that may be read."""
        self.refused += 1
        if len(self.refusals) < KEPT_REFUSALS:  # an archive may hold a million links
            self.refusals.append(Refusal(name, reason, message))

    def take(self, inputs: Inputs) -> None:
        """Move over what `fr_deploy.inputs` noted."""
        for refusal in inputs.refusals:
            self.refuse(refusal.name, refusal.reason, refusal.message)
        self.ignored += inputs.ignored
        inputs.refusals.clear()
        inputs.ignored = 0


def relative_name(name: str, max_part: int = MAX_PART) -> str:
    """Tidy a relative name: without `.` and empty parts.

    Raises:
        ImageError: reason `unsafe_name` (absolute, with `..`, empty, or no file name at all), `name_too_long` (a part
            of more than `max_part` bytes, or 3072 in all) or `too_deep` (more than 64 parts).
    """
    if name.startswith("/"):
        raise ImageError("unsafe_name", "is an absolute name; allowed are relative ones")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError("unsafe_name", "leads out of its folder by '..'")
    if not parts or "\0" in name:
        raise ImageError("unsafe_name", "is no name of a file" if parts else "is an empty name")
    if len(parts) > MAX_DEPTH:
        raise ImageError("too_deep", f"has {len(parts)} parts; allowed are {MAX_DEPTH}")
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError as error:  # half a surrogate pair, from JSON
        raise ImageError("unsafe_name", f"cannot be a file's name: {error.reason}") from None
    if max(sizes) > max_part:
        text = f"has a part of {max(sizes)} bytes; allowed are {max_part}: shorten it"
        raise ImageError("name_too_long", text)
    if sum(sizes) + len(sizes) > MAX_NAME:
        raise ImageError("name_too_long", f"has {sum(sizes)} bytes; allowed are {MAX_NAME}")
    return "/".join(parts)


def name_of_path(path: str) -> str:
    """The item's name of a path met in a list: the path itself, without a leading `/` or `../`, as tar does it."""
    parts = os.path.normpath(path).split("/")
    return "/".join(part for part in parts if part not in ("", ".."))


def is_url(text: str) -> bool:
    """Whether a text begins like `scheme://`."""
    return _URL.match(text) is not None


def name_of_url(url: str) -> str:
    """The item's name of a URL met in a list: `host/path`, percent signs decoded for http, without the query.

    Raises:
        ImageError: reason `bad_url`.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("http", "https"):
        return rest  # keys of objects may hold any character, %, ? and # among them
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ImageError("bad_url", f"is no URL: {error}") from None
    if not host:
        raise ImageError("bad_url", "has no host")
    if parts.username is not None or parts.password is not None:
        raise ImageError("bad_url", "holds a user's name or password, which would be kept on disk")
    path = unquote(parts.path, errors="surrogateescape")
    return f"{host}{f'_{port}' if port else ''}{path}"
