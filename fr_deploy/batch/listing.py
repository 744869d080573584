"""From what a user names to the items of a run, one after the other: a million are never in memory together."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fr_deploy.batch.finder import Finder, Found
from fr_deploy.batch.item import Item
from fr_deploy.batch.manifests import StandardInput
from fr_deploy.batch.names import Naming, Notes, relative_name
from fr_deploy.errors import ImageError


class Listing:
    """Items in a stable order, found anew each time it is gone through.

    What was passed over stands in `notes`, complete once the last item was taken.
    """

    def __init__(
        self,
        names: Sequence[str],
        finder: Finder,
        *,
        naming: Naming,
        stdin: BinaryIO | None,
    ) -> None:
        self.notes = Notes()
        self._names = list(dict.fromkeys(names))
        self._finder = finder
        self._naming = naming
        self._stdin = StandardInput(stdin or sys.stdin.buffer) if "-" in names else None

    def __iter__(self) -> Iterator[Item]:
        """Find the items.

        Raises:
            UsageError: a manifest without the columns it needs.
            ResourceError: a package for s3:// or gs:// is missing; no room for the names of standard input.
        """
        self.notes = self._finder.notes = Notes()
        index = 0
        for found in self._found():
            item = itemize(found, index, self._naming, self.notes)
            if item is not None:
                index += 1
                yield item

    def _found(self) -> Iterator[Found]:
        for name in self._names:
            if name == "-":
                assert self._stdin is not None
                yield from self._finder.rows(self._stdin.rows(), os.getcwd())
            else:
                yield from self._finder.named(name)


def list_items(
    names: Sequence[str],
    *,
    outside: Path | Sequence[Path] | None = None,
    ext: str | None = None,
    suffix: str = "",
    spare: int = 0,
    allow_http: bool = False,
    stdin: BinaryIO | None = None,
) -> Listing:
    """List the photos that `names` stand for.

    Args:
        names: files, folders (searched as `restore` does it, archives in them included), patterns, tar and zip files,
            CSV and JSONL manifests, http(s), s3 and gs URLs, and `-` for names from standard input.
        outside: the destination and other folders to stay out of.
        ext: suffix of all outputs without the dot; by default each input's own.
        suffix: put behind the stem of outputs.
        spare: bytes that names of outputs must leave free of their 255.
        allow_http: http(s) URLs are refused without it.
        stdin: read for `-`; by default `sys.stdin`.

    Raises:
        UsageError: an `ext` that cannot be written, a `suffix` that is no part of a file name.
    """
    folders = [outside] if isinstance(outside, Path) else list(outside or ())
    finder = Finder(frozenset(folder.resolve() for folder in folders), allow_http)
    naming = Naming(ext, suffix, spare)
    return Listing(names, finder, naming=naming, stdin=stdin)


def itemize(found: Found, index: int, naming: Naming, notes: Notes) -> Item | None:
    """Make an item of what was found; None, with a note, if its name or its output's is not safe."""
    try:
        name = relative_name(found.name)
        if found.output is not None:
            output = naming.checked(found.output)
        else:
            output = naming.output(relative_name(found.output_from or name))
    except ImageError as error:
        notes.refuse(found.where or found.name, error.reason, f"{error} (in {found.place})")
        return None
    more = (found.member, found.offset, found.size, found.mtime_ns)
    return Item(index, name, found.place, output, *more)
