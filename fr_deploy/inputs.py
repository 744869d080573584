"""From what a user names (files, folders, patterns) to a list of jobs, checked before any work."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fr_deploy.errors import UsageError
from fr_deploy.photo import SUFFIXES

# Names that promise a photo but that results cannot have. Met in a folder they are tried, and named
# as failures if they cannot be read, not passed over in silence.
_OTHER_PHOTOS = frozenset(
    [
        ".gif",
        ".avif",
        ".heic",
        ".heif",
        ".jxl",
        ".jp2",
        ".psd",
        ".svg",
        ".pdf",
        ".eps",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raf",
        ".orf",
    ]
)


PHOTO_SUFFIXES = SUFFIXES.keys() | _OTHER_PHOTOS
"""What a photo in a folder is known by."""
MAX_DEPTH = 64
"""Folders below the one named, at most; a tree that goes on is nobody's photos."""


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    relative: PurePath
    """Its place below the folder or pattern that named it; kept in the output tree."""
    explicit: bool = False
    """The user named this very file."""


@dataclass(frozen=True)
class Refusal:
    """Something named that holds no photo."""

    name: str
    reason: str
    message: str


@dataclass
class Inputs:
    """What was found."""

    sources: list[Source] = field(default_factory=list[Source])
    refusals: list[Refusal] = field(default_factory=list[Refusal])
    ignored: int = 0
    """Files in folders that are no photos by their name, or hidden."""


@dataclass(frozen=True)
class Job:
    """One photo and the file its result goes to."""

    source: Source
    output: Path


def collect_inputs(names: Sequence[str], *, outside: Path | None = None) -> Inputs:
    """Find the photos that `names` stand for, in a stable order, each once.

    A folder is searched to the bottom (links to folders are not followed, hidden files are left out).
    In a folder a photo is known by its suffix; a file named outright is always tried.

    Args:
        names: files, folders, or patterns such as `photos/**/*.jpg`.
        outside: a folder to stay out of: the results of an earlier run.
    """
    inputs = Inputs()
    avoid = {outside.resolve()} if outside else set[Path]()
    for name in names:
        if os.path.lexists(name):
            _add(inputs, Path(name), PurePath(Path(name).name), avoid)
        elif glob.has_magic(name):
            inputs.sources += find_pattern(inputs, name, avoid)
        else:
            inputs.refusals.append(Refusal(name, "not_found", "no such file or folder"))
    inputs.sources = list(dict.fromkeys(inputs.sources))
    return inputs


def plan_jobs(inputs: Inputs, out: Path, *, ext: str | None = None, suffix: str = "") -> list[Job]:
    """Give each source its output path.

    The name is kept. A suffix that cannot be written becomes PNG: `a.gif` gives `a.png`, any other
    one is kept inside the name (`a.xyz` gives `a.xyz.png`).

    Args:
        inputs: what was found.
        out: a folder; or a file name with an image suffix, for one input file.
        ext: suffix of all outputs without the dot; by default each input's own.
        suffix: put behind the stem, such as `_restored`.

    Raises:
        UsageError: two inputs would go to one output, an output would be an input, or `out` is a
            file for several inputs.
    """
    sources = inputs.sources
    if _is_file_name(out, sources):
        jobs = [Job(sources[0], out)]
    else:
        if out.exists() and not out.is_dir():
            raise UsageError(f"-o {out} is a file; name a folder for these {len(sources)} inputs")
        jobs = [Job(s, out / output_name(s.relative, ext, suffix)) for s in sources]
    _check_collisions(jobs)
    return jobs


def output_name(relative: PurePath, ext: str | None, suffix: str) -> PurePath:
    """The name of a result, as `plan_jobs` says: `a.gif` gives `a.png`, `a.xyz` gives `a.xyz.png`."""
    own = relative.suffix
    if own.lower() in SUFFIXES:
        stem, new = relative.stem, own
    elif own.lower() == ".gif":
        stem, new = relative.stem, ".png"
    else:
        stem, new = relative.name, ".png"
    return relative.with_name(f"{stem}{suffix}{f'.{ext}' if ext else new}")


def _is_file_name(out: Path, sources: list[Source]) -> bool:
    one_file = len(sources) == 1 and sources[0].explicit
    return one_file and out.suffix.lower() in SUFFIXES and not out.is_dir()


def _check_collisions(jobs: list[Job]) -> None:
    counts = Counter(job.output for job in jobs)
    if doubles := [path for path, count in counts.items() if count > 1]:
        clash = [str(job.source.path) for job in jobs if job.output == doubles[0]]
        raise UsageError(
            f"{len(doubles)} output names would be written twice, first {doubles[0]} from "
            f"{' and '.join(clash[:3])}; run them with different -o, or leave out --ext"
        )
    originals = {job.source.path.resolve() for job in jobs}
    for job in jobs:
        if job.output.resolve() in originals:
            raise UsageError(
                f"{job.output} is one of the inputs and would be overwritten; "
                "name another folder with -o, or add --suffix _restored"
            )


def _add(inputs: Inputs, path: Path, relative: PurePath, avoid: AbstractSet[Path]) -> None:
    if not path.is_dir():
        inputs.sources.append(Source(path, relative, explicit=True))
        return
    found = list(find_below(inputs, path, avoid))
    inputs.sources += found
    if not found:
        inputs.refusals.append(Refusal(str(path), "empty_folder", "holds no photo"))


def find_pattern(
    inputs: Inputs, pattern: str, avoid: AbstractSet[Path], also: AbstractSet[str] = frozenset()
) -> Iterator[Source]:
    """Find what a shell pattern matches; the tree below its fixed part is kept.

    Args:
        inputs: takes the refusals and the count of what is ignored; no sources are put there.
        pattern: such as `photos/**/*.jpg`.
        avoid: resolved folders to stay out of.
        also: suffixes wanted in folders besides those of photos, with their dot, in lower case.
    """
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    for path in matches:
        if avoid and not avoid.isdisjoint((path.resolve(), *path.resolve().parents)):
            continue
        if not path.is_dir():
            yield Source(path, path.relative_to(root))
        elif "**" not in pattern:  # with ** the files below are matches themselves
            for source in find_below(inputs, path, avoid, also):
                yield Source(source.path, path.relative_to(root) / source.relative)
    if not matches:
        inputs.refusals.append(Refusal(pattern, "not_found", "the pattern matches nothing"))


def find_below(
    inputs: Inputs, root: Path, avoid: AbstractSet[Path], also: AbstractSet[str] = frozenset()
) -> Iterator[Source]:
    """Find the photos below a folder, folder by folder: the names of one at a time are held in memory.

    Links to folders are not followed, hidden files and folders are left out.

    Args:
        inputs: takes the refusals and the count of what is ignored; no sources are put there.
        root: the folder.
        avoid: resolved folders to stay out of.
        also: suffixes wanted besides those of photos, with their dot, in lower case.
    """

    def unreadable(error: OSError) -> None:
        name = str(error.filename or root)
        inputs.refusals.append(Refusal(name, "unreadable", error.strerror or str(error)))

    for folder, below, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        relative = here.relative_to(root)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if avoid:
            below[:] = [name for name in below if (here / name).resolve() not in avoid]
        if below and len(relative.parts) >= MAX_DEPTH - 1:
            text = f"is {MAX_DEPTH} folders deep; what is below is left out: name it by itself"
            inputs.refusals.append(Refusal(str(here / below[0]), "too_deep", text))
            below.clear()
        names.sort()
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or (suffix not in PHOTO_SUFFIXES and suffix not in also):
                inputs.ignored += 1
            else:
                yield Source(here / name, relative / name)
