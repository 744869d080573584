"""Whose fault it was that a process ended: the photo's it worked on, or somebody's who ends processes.

A photo is given up after `attempts` deaths, or two hangs. Once there is a sign that processes are ended from outside,
the limit is ten deaths: when a photo that had been struck came through on a later try, or when SIGKILL, which no
decoder sends itself, hit two different photos within a hundred tasks. A photo that only SIGKILL ever hit, without such
a sign, gets twice the attempts: the kernel's answer to want of memory looks the same.
"""

import signal
from dataclasses import dataclass

from fr_deploy.batch.stage import Role

MOST_HANGS = 2
MOST_STRIKES = 10
"""Deaths over one photo that are taken for somebody else's doing."""
_MEMORY = 100
"""Tasks that went well after which a sign of outside killing is forgotten."""

_REASONS: dict[Role, str] = {
    "prepare": "decoder_killed",
    "device": "device_killed",
    "finish": "encoder_killed",
}


@dataclass(frozen=True)
class Death:
    """The end of a process that was not asked to end."""

    role: Role
    signal: int = 0
    """Of the kernel or of somebody else; 0: none."""
    hang_seconds: float = 0.0
    """It was ended by us, because it took longer than this."""
    error: str = ""
    """It was ended by us, because of this."""
    code: int = 0
    """Its exit code, where no signal ended it."""

    @property
    def reason(self) -> str:
        """The code that a photo failed with gets in its record."""
        if self.hang_seconds:
            return "timeout"
        return "unexpected" if self.error else _REASONS[self.role]

    def __str__(self) -> str:
        if self.hang_seconds:
            return f"took longer than {self.hang_seconds:g} s"
        if self.error:
            return self.error
        if not self.signal:
            return f"ended with exit code {self.code}"
        name = signal.Signals(self.signal).name if self.signal in list(signal.Signals) else ""
        more = ": out of memory, or by hand" if self.signal == signal.SIGKILL else ""
        return f"was killed by signal {self.signal} ({name}{more})"


@dataclass(eq=False)
class Strikes:
    """The deaths over one photo."""

    count: int = 0
    hangs: int = 0
    kills: int = 0
    """By a SIGKILL that was not ours."""
    first: int = 0
    """When: the number of tasks that had gone well before."""


class Blame:
    """Judges deaths.

    Args:
        attempts: deaths over one photo before it is given up.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._well = 0
        self._outside = -_MEMORY - 1  # the last sign, counted as `first` is
        self._killed: tuple[Strikes, int] | None = None

    def went_well(self, strikes: Strikes) -> None:
        """A process came through a task of this photo, whether or not the photo was good."""
        self._well += 1
        if strikes.count:
            self._outside = self._well

    def strike(self, strikes: Strikes, death: Death) -> bool:
        """Count a death while this photo, and no other, was worked on.

        Returns:
            Whether the photo is given up.
        """
        if not strikes.count:
            strikes.first = self._well
        strikes.count += 1
        strikes.hangs += bool(death.hang_seconds)
        if death.signal == signal.SIGKILL:
            strikes.kills += 1
            self._note_kill(strikes)
        return strikes.hangs >= MOST_HANGS or strikes.count >= self._limit(strikes)

    def _note_kill(self, strikes: Strikes) -> None:
        if self._killed is not None:
            other, when = self._killed
            if other is not strikes and when >= self._well - _MEMORY:
                self._outside = self._well
        self._killed = (strikes, self._well)

    def _limit(self, strikes: Strikes) -> int:
        if self._outside >= strikes.first - _MEMORY:
            return max(MOST_STRIKES, self._attempts)
        if strikes.kills == strikes.count:
            return 2 * self._attempts
        return self._attempts
