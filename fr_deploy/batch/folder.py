"""Making and clearing the folders of a run's state."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from fr_deploy.batch.durable import disk_errors, fsync_folder
from fr_deploy.errors import UsageError

FOLDER = ".fr-deploy"
"""Below the destination; nothing else may be placed in it."""


def state_folder(destination: Path, shard: tuple[int, int] | None = None) -> Path:
    """Where the state of a run lies by default.

    Args:
        destination: of its outputs.
        shard: (i, n), i from 0, if it is one of n.
    """
    folder = destination / FOLDER
    return folder / f"shard-{shard[0]}-of-{shard[1]}" if shard else folder


def make_durably(folder: Path, on_change: Callable[[Path], object] = fsync_folder) -> None:
    """Make a folder and those above it.

    Args:
        folder: may exist.
        on_change: called with each folder in which one was made, to make that durable now or later.

    Raises:
        NotADirectoryError: a file stands where a folder is needed.
        OSError: it cannot be made.
    """
    missing = [folder]
    while missing:
        here = missing[-1]
        try:
            here.mkdir()
        except FileNotFoundError:
            missing.append(here.parent)
            continue
        except (FileExistsError, NotADirectoryError):
            if not here.is_dir():
                file = next(place for place in (here, *here.parents) if place.exists())
                what = "a file stands where a folder is needed"
                raise NotADirectoryError(errno.ENOTDIR, what, str(file)) from None
        else:
            on_change(here.parent)
        missing.pop()


def make_state_folder(folder: Path) -> None:
    """Make the folder of a state.

    Raises:
        UsageError: a file stands there.
        ResourceError: it cannot be made.
    """
    with disk_errors(folder):
        try:
            make_durably(folder)
        except NotADirectoryError as error:
            place = error.filename or folder
            raise UsageError(f"{place} is a file; name a folder for the results") from error


def make_part_folder(folder: Path, destination: Path) -> Path:
    """The folder for outputs that are not yet committed; made if missing.

    Args:
        folder: the state's.
        destination: of the outputs; made if missing.

    Returns:
        `parts` of the state's folder; or, where a file cannot be renamed from there into the destination, a folder
        below the destination's `.fr-deploy`.

    Raises:
        ResourceError: it cannot be written.
    """
    here, there = part_folders(folder, destination)
    with disk_errors(destination):
        make_durably(destination)
        make_durably(here)
        if _can_rename(here, destination):
            return here
        make_durably(there)
        return there


def part_folders(folder: Path, destination: Path) -> tuple[Path, Path]:
    """Where parts may lie: `parts` of the state, and the place in the destination, which may not exist."""
    # A name of its own for each state: two runs may share a destination.
    name = "parts-" + blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return folder / "parts", destination / FOLDER / name


def clear_parts(folder: Path) -> int:
    """Remove everything from a folder of parts; returns how many entries there were.

    Raises:
        ResourceError: it cannot be written.
    """
    count = 0
    with disk_errors(folder):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
            count += 1
    return count


def clear_torn(folder: Path) -> None:
    """Remove files of a state that were being written when their process was killed."""
    for path in folder.glob(".*.part"):
        with suppress(OSError):  # it is written anew all the same
            path.unlink()


def _can_rename(here: Path, there: Path) -> bool:
    """Tried, because equal device numbers prove nothing: a bind mount has its file system's."""
    name = f".{secrets.token_hex(8)}.part"
    probe, moved = here / name, there / name
    probe.touch()
    try:
        probe.rename(moved)
    except OSError:
        probe.unlink()
        return False
    moved.unlink()
    return True
