"""Clashes of names and of outputs, found among millions before anything is done: 96 MiB and 10 s for a million."""

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fr_deploy.batch.item import Item
from fr_deploy.batch.names import is_url
from fr_deploy.display import printable
from fr_deploy.errors import UsageError

_MASK = 2**64 - 1
_SUSPECTS = 10_000
"""Clashing digests looked at exactly; of so many one is a true clash, and one is named."""
_COMPACT = 2**20

_ReadAgain = Callable[[], Iterable[Item]]
_Keys = Callable[[Item], tuple[str, ...]]


def check_collisions(read_again: _ReadAgain, destination: Path | None) -> int:
    """Make sure that a list's items have names and outputs of their own, and that no output is an input.

    Args:
        read_again: begins to read the list anew, the same items each time. Of a run that is one of N shards, the
            whole list: items of two shards may clash.
        destination: the folder of the outputs; None if they go into tar files.

    Returns:
        The number of items.

    Raises:
        UsageError: two items of one name or with one output, an output that another one needs as a folder, or an
            output that is an input. The message names the first, the number of such cases, and what to do.
    """
    fold = str.casefold if destination is not None and folds_case(destination) else str
    names = _Side(lambda item: (item.name,))
    outputs = _Side(lambda item: (fold(item.output),))
    folders = _Side(lambda item: _parents(fold(item.output)), counts=False)
    inputs = _Side(_input_keys, counts=False)
    targets = _Side(lambda item: (_real_path(destination, item.output),))
    sides = [names, outputs, folders] + ([inputs, targets] if destination is not None else [])
    count = 0
    for item in read_again():
        count += 1
        for side in sides:
            side.add(item)
    _refuse(read_again, names.twice(), (names, None), _same_name)
    _refuse(read_again, outputs.twice(), (outputs, None), _same_output)
    _refuse(read_again, outputs.common(folders), (outputs, folders), _file_and_folder)
    _refuse(read_again, inputs.common(targets), (inputs, targets), _overwritten)
    return count


def folds_case(folder: Path) -> bool:
    """Whether `a.jpg` and `A.jpg` are one file there, as on exFAT; the folder need not exist yet."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".fr-deploy-Case-", dir=folder) as made:
            return os.path.exists(os.path.join(folder, os.path.basename(made).swapcase()))
    except OSError:
        return False  # what cannot be written is said when it is


class _Side:
    """64 bits of each text that items stand for; Python's own hash, which is as good as any within one process.

    Args:
        keys: the texts of an item.
        counts: whether it matters that a text comes twice.
    """

    def __init__(self, keys: _Keys, counts: bool = True) -> None:
        self.keys = keys
        self._counts = counts
        self._digests = array("Q")
        self._last: tuple[str, ...] = ()
        self._compact_at = _COMPACT

    def add(self, item: Item) -> None:
        keys = self.keys(item)
        if not self._counts:
            if keys == self._last:
                return  # the same folder or archive
            self._last = keys
            if len(self._digests) >= self._compact_at:
                self._digests = array("Q", np.unique(self._view()).tobytes())
                self._compact_at = max(_COMPACT, 2 * len(self._digests))
        self._digests.extend([hash(key) & _MASK for key in keys])

    def twice(self) -> NDArray[np.uint64]:
        digests = self._view()
        digests.sort()
        return np.unique(digests[1:][digests[1:] == digests[:-1]])

    def common(self, other: "_Side") -> NDArray[np.uint64]:
        return np.intersect1d(self._view(), other._view())

    def _view(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._digests, np.uint64)


def _refuse(
    read_again: _ReadAgain,
    digests: NDArray[np.uint64],
    sides: tuple[_Side, _Side | None],
    message: Callable[[Item, Item, int], str],
) -> None:
    if len(digests) == 0:
        return
    suspects = {int(digest) for digest in digests[:_SUSPECTS]}
    left, right = sides
    seen: dict[str, Item] = {}
    for item in read_again():
        for key in left.keys(item):
            if hash(key) & _MASK in suspects:
                if right is None and key in seen:
                    raise UsageError(printable(message(seen[key], item, len(digests))))
                seen.setdefault(key, item)
    for item in read_again() if right is not None else ():
        assert right is not None
        for key in right.keys(item):
            if key in seen:
                raise UsageError(printable(message(seen[key], item, len(digests))))


def _parents(output: str) -> tuple[str, ...]:
    parts = output.split("/")
    return tuple("/".join(parts[:n]) for n in range(1, len(parts)))


def _input_keys(item: Item) -> tuple[str, ...]:
    """Where an input really lies; a link lies where it is and where it leads."""
    if is_url(item.place):
        return ()
    folder, name = os.path.split(item.place)
    place = f"{_real_folder(folder)}/{name}"
    return (place, os.path.realpath(place)) if os.path.islink(place) else (place,)


def _real_path(destination: Path | None, output: str) -> str:
    folder, name = os.path.split(f"{destination}/{output}")
    return f"{_real_folder(folder)}/{name}"


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _same_name(first: Item, second: Item, count: int) -> str:
    begin = f"{count} names stand for more than one photo, first {first.name}: "
    if (first.place, first.member) == (second.place, second.member):
        return f"{begin}{first.place} has it, or is named, twice; leave one of them out"
    return (
        f"{begin}{first.place} and {second.place}; give them to separate runs, name the folder "
        "above them, or call them differently in the column name of a manifest"
    )


def _same_output(first: Item, second: Item, count: int) -> str:
    return (
        f"{count} outputs would be written more than once, first {second.output} from {first.name} and "
        f"{second.name}; leave out --ext, give them to separate runs, or say where they go in the "
        "column output of a manifest"
    )


def _file_and_folder(first: Item, second: Item, count: int) -> str:
    return (
        f"{count} outputs would be a file and a folder at once, first {first.output} from "
        f"{first.name}, below which {second.name} goes; give them to separate runs"
    )


def _overwritten(first: Item, second: Item, count: int) -> str:
    return (
        f"{count} outputs are inputs and would be overwritten, first {second.output} of {second.name}, which is "
        f"{first.place}; name another folder, or add --suffix _restored"
    )
