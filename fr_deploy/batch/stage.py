"""The work of a run: three kinds of objects, each called in processes of its own."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Role = Literal["prepare", "device", "finish"]
ROLES: tuple[Role, ...] = ("prepare", "device", "finish")


class Stage(Protocol):
    """One kind of work; picklable, because each process gets its own copy.

    Raised by `setup`, any error ends the run. Raised by a call, ImageError is about the photo and becomes its
    reason; any other FrDeployError ends the run; everything else is reason `unexpected`.
    """

    def setup(self) -> None:
        """Load what the work needs; called once in each process."""
        ...

    def __call__(self, task: Any, /) -> Any:
        """Do the work: Item -> Prepared, Faces -> Restored, Finish -> Finished (types of `work.py`).

        `prepare` and `finish` may also return a Record: then that is the photo's outcome.
        """
        ...


@dataclass(frozen=True)
class Stages:
    """What the processes of a run do."""

    prepare: Stage
    devices: list[Stage]
    """One process each."""
    finish: Stage
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports once, so that a process which takes another one's place starts at once.

    None that starts threads when it is imported, or opens a device.
    """
