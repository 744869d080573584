"""What a run's end says, and that counting a million items takes no memory."""

import tracemalloc
from typing import Any

import pytest

from fr_deploy.batch.item import Output, Record, Status
from fr_deploy.batch.summary import EXAMPLES, Histogram, Load, Tally, bottleneck, summary_lines

LOADS = {"prepare": Load(0.2, 2), "restore": Load(0.95, 1), "finish": Load(0.1, 1)}


def record(index: int, status: Status = "restored", **more: Any) -> Record:
    return Record(index, f"{index:032x}", f"photo {index}.jpg", status, **more)


def tally_of(*records: Record) -> Tally:
    tally = Tally()
    for one in records:
        tally.add(one)
    return tally


def text(tally: Tally, **more: Any) -> str:
    given = {"total": tally.done, "new": tally.done, "seconds": 10.0, "loads": LOADS} | more
    return "\n".join(summary_lines(tally, **given))


def test_counts_and_speed() -> None:
    faces = [{"box": [0, 0, 1, 1], "angle": 31.0, "blend": 0.5}, {"box": [0, 0, 1, 1]}]
    tally = tally_of(
        record(0, faces=faces, outputs=[Output("a.jpg", 10, "")], warnings=["first_frame_only"]),
        record(1, "no_face"),
        record(2, "copied"),
        record(3, "failed", reason="truncated", message="ends after 3 bytes"),
    )
    told = text(tally, new=2, total=9)
    assert "4 of 9 done: 1 restored, 1 without a face, 1 without a face, copied, 1 failed" in told
    assert "2 photos, 2 faces in 10 s, 0.2 a second; 2 in earlier starts" in told
    assert "remarks: first_frame_only 1" in told
    assert "identity guard: 1 of 2 faces blended back" in told
    assert tally.output_bytes == 10
    assert dict(tally.angles.bars()) == {"30 to 35": 1}


def test_failures_are_told_by_reason_with_examples() -> None:
    records = [record(i, "failed", reason="truncated", message=f"at {i}") for i in range(50)]
    records.append(record(99, "failed", reason="decoder_killed", message="\x1b[31msignal 11\n"))
    told = text(tally_of(*records))
    assert "failed: 50 x truncated" in told
    assert told.count("photo ") == EXAMPLES + 1
    assert "and 47 more" in told
    assert "\x1b" not in told
    assert "\\x1b[31msignal 11\\n" in told
    assert told.index("truncated") < told.index("decoder_killed")


def test_outcomes_of_earlier_starts_count() -> None:
    tally = tally_of(record(0))
    tally.add_earlier({("restored", ""): 5, ("failed", "truncated"): 2, ("failed", "corrupt"): 0})
    told = text(tally, new=1)
    assert "8 done: 6 restored, 2 failed" in told
    assert "failed: 2 x truncated" in told
    assert "corrupt" not in told
    assert tally.exit_code() == 3


def test_busy_stages_and_the_bottleneck() -> None:
    told = text(tally_of(record(0)))
    assert "prepare 20% of 2 processes, restore 95% of 1 process, finish 10% of 1 process" in told
    assert told.endswith("1 photo in 10 s, 0.1 a second")
    assert bottleneck(LOADS) == "restore"
    assert bottleneck({"prepare": Load(0.0, 1)}) == ""
    assert bottleneck({}) == ""


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([("restored", "")], 0),
        ([("no_face", "")], 0),
        ([("restored", ""), ("failed", "truncated")], 3),
        ([("failed", "truncated"), ("failed", "corrupt")], 4),
        ([("failed", "unwritable")], 3),
        ([("restored", ""), ("failed", "unexpected")], 1),
        ([], 4),
    ],
)
def test_exit_codes(statuses: list[tuple[Status, str]], code: int) -> None:
    records = [record(i, status, reason=reason) for i, (status, reason) in enumerate(statuses)]
    assert tally_of(*records).exit_code() == code


def test_histogram_has_a_place_for_every_value() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (-5.0, 0.99, 1.0, 2.0, 1e9):
        histogram.add(value)
    assert list(histogram.bars()) == [("< 1", 2), ("1 to 2", 1), (">= 2", 2)]
    assert list(Histogram((1.0,)).bars()) == []


def test_memory_does_not_grow_with_items_or_with_hostile_codes() -> None:
    tally = Tally()

    def count(first: int, last: int) -> None:
        for i in range(first, last):
            tally.add(record(i, "failed", reason=f"r{i}", message="m" * 50, warnings=[f"w{i}"]))

    count(0, 1000)
    tracemalloc.start()
    count(1000, 11_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000
    assert tally.failed == 11_000
    assert sum(reason.count for reason in tally.reasons.values()) == 11_000
