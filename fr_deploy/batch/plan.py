"""What a run does to each of its photos: fixed at its start, kept in run.json, the same for every resume."""

from dataclasses import dataclass, field
from pathlib import Path

from fr_deploy.settings import Limits, RestoreOptions


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the outputs are; whatever differs here makes other bytes."""

    options: RestoreOptions = field(default_factory=RestoreOptions)
    limits: Limits = field(default_factory=Limits)
    confidence: float | None = None
    """Of the detector; None: its own."""
    ext: str | None = None
    """Suffix of all outputs without the dot; None: each input's own."""
    suffix: str = ""
    """Put behind the stem of outputs."""
    quality: int = 95
    """Of JPEG, WebP and AVIF, 1 to 100."""
    only_faces: bool = False
    """Write the restored 512-pixel crops, not the photos."""
    copy_faceless: bool = False
    """Write photos in which no face was found, too."""
    fixed_bucket: int | None = None
    """Every batch is padded to so many faces; None: batches are as they come."""
    max_identity_angle: float | None = None
    """Degrees of deg_dlib; a face that moved further is blended back. None: no guard."""


@dataclass(frozen=True)
class Pace:
    """How a run is carried out; changes nothing of the outputs."""

    destination: Path
    """Where parts are written, and outputs placed."""
    part_folder: Path
    """Where outputs lie until they are committed; of the same file system as the destination."""
    preparers: int = 1
    """Processes that fetch, decode, detect and align."""
    finishers: int = 1
    """Processes that paste back, encode and write."""
    batch: int = 16
    """Faces a batch at most."""
    flush_seconds: float = 0.05
    """A batch that is not full is sent after this long, if its device is idle."""
    item_seconds: float = 60.0
    """How long one process may take over one photo before it is ended."""
    device_seconds: float = 600.0
    """How long a device may take over one batch."""
    child_bytes: int = 4 * 2**30
    """Address space of a process that decodes."""
    in_flight: int = 16
    """Photos begun and not yet committed, at most."""
    attempts: int = 3
    """Deaths of a process over one photo before that photo is given up."""
    pictures: bool = False
    """Keep small before/after pictures, for the report."""
    measure_identity: bool = False
    """Measure how far each face's identity moved, also without a guard."""
