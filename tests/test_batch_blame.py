"""Whose fault a death is: a poison photo is given up soon, an innocent one never."""

import signal

import pytest

from fr_deploy.batch.blame import MOST_HANGS, MOST_STRIKES, Blame, Death, Strikes

CRASH = Death("prepare", signal=signal.SIGSEGV)
KILL = Death("prepare", signal=signal.SIGKILL)
HANG = Death("prepare", hang_seconds=60)


def deaths(blame: Blame, strikes: Strikes, death: Death) -> int:
    """How many it takes until the photo is given up."""
    for number in range(1, 100):
        if blame.strike(strikes, death):
            return number
    raise AssertionError("never given up")


@pytest.mark.parametrize("attempts", [1, 3, 5])
def test_a_crash_of_its_own_gives_a_photo_its_attempts(attempts: int) -> None:
    blame = Blame(attempts)
    for _ in range(200):
        blame.went_well(Strikes())
    assert deaths(blame, Strikes(), CRASH) == attempts
    assert deaths(blame, Strikes(), CRASH) == attempts, "one poison photo does not excuse another"


def test_two_hangs_are_enough() -> None:
    blame = Blame(3)
    assert deaths(blame, Strikes(), HANG) == MOST_HANGS
    mixed = Strikes()
    assert not blame.strike(mixed, HANG)
    assert not blame.strike(mixed, CRASH)
    assert blame.strike(mixed, HANG)


def test_a_struck_photo_that_comes_through_excuses_the_others() -> None:
    blame = Blame(3)
    late, lucky = Strikes(), Strikes()
    blame.strike(late, CRASH)
    blame.strike(lucky, CRASH)
    blame.strike(late, CRASH)
    blame.went_well(lucky)
    assert deaths(blame, late, CRASH) == MOST_STRIKES - 2
    assert deaths(blame, Strikes(), CRASH) == MOST_STRIKES


def test_an_excuse_does_not_last() -> None:
    blame = Blame(3)
    lucky = Strikes()
    blame.strike(lucky, CRASH)
    blame.went_well(lucky)
    for _ in range(101):
        blame.went_well(Strikes())
    assert deaths(blame, Strikes(), CRASH) == 3


def test_sigkill_on_two_photos_comes_from_outside() -> None:
    blame = Blame(3)
    first, second = Strikes(), Strikes()
    blame.strike(first, KILL)
    blame.strike(second, KILL)
    assert deaths(blame, first, KILL) == MOST_STRIKES - 1


def test_sigkill_on_one_photo_alone_gives_it_twice_the_attempts() -> None:
    assert deaths(Blame(3), Strikes(), KILL) == 6


@pytest.mark.parametrize(
    ("death", "reason", "text"),
    [
        (CRASH, "decoder_killed", "was killed by signal 11 (SIGSEGV)"),
        (Death("finish", signal=6), "encoder_killed", "was killed by signal 6 (SIGABRT)"),
        (
            Death("device", signal=9),
            "device_killed",
            "was killed by signal 9 (SIGKILL: out of memory, or by hand)",
        ),
        (Death("device", code=3), "device_killed", "ended with exit code 3"),
        (HANG, "timeout", "took longer than 60 s"),
        (Death("device", error="it broke"), "unexpected", "it broke"),
        (Death("prepare", signal=63), "decoder_killed", "was killed by signal 63 ()"),
    ],
)
def test_a_death_says_what_it_was(death: Death, reason: str, text: str) -> None:
    assert (death.reason, str(death)) == (reason, text)
