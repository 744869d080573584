"""The ledger: nothing damaged is believed, nothing whole is lost, whatever was interrupted."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from batch_records import Disk, record, run_to_end, start
from fr_deploy.batch.bits import Bits
from fr_deploy.batch.item import Output, Record
from fr_deploy.batch.ledger import Ledger, read_outcomes, read_tally
from fr_deploy.batch.lines import decode_line, encode_line, read_lines
from fr_deploy.errors import ResourceError


def written(path: Path, count: int) -> list[bytes]:
    """A ledger of short records; returns its lines."""
    ledger = Ledger(path)
    ledger.append([record(index) for index in range(count)])
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    full = record(
        3,
        status="restored",
        outputs=[Output("a/\udcff\n.png", 5, "f" * 64), Output("b.png", 0, "0" * 64)],
        faces=[{"box": [1.5, 2.0, 3.0, 4.0], "score": 0.9, "angle": None}],
        warnings=["reduced_to_8_bit"],
        ms={"decode": 1.25},
        at=1e9,
    )
    full.name = "bad \udcff name\n'\"\u202e.jpg"
    ledger = Ledger(tmp_path / "l")
    ledger.append([full])
    assert list(read_outcomes(ledger.path)) == [full]


def test_counts_and_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.append([record(0), record(70_000, status="failed", reason="truncated")])
    ledger.append([record(2, status="restored")])
    ledger.close()
    for tally in (ledger.tally, read_tally(ledger.path)):
        assert list(tally.done) == [0, 2, 70_000]
        assert list(tally.failed) == [70_000]
        assert tally.counts == {("no_face", ""): 1, ("failed", "truncated"): 1, ("restored", ""): 1}
        assert (tally.corrupt, tally.duplicates) == (0, 0)


@pytest.mark.parametrize("records", [[1, 1], [0], [2, 0]])
def test_a_second_outcome_is_refused(tmp_path: Path, records: list[int]) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.append([record(0)])
    before = ledger.path.read_bytes()
    with pytest.raises(ValueError, match="second outcome"):
        ledger.append([record(index) for index in records])
    assert ledger.path.read_bytes() == before
    assert ledger.outcomes == 1


def test_a_redo_takes_an_outcome_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    first = record(1, status="failed", reason="truncated")
    ledger.append([record(0), first])
    ledger.redo([first], "missing")
    for tally in (ledger.tally, read_tally(ledger.path)):
        assert list(tally.done) == [0]
        assert list(tally.redone) == [1]
        assert +tally.counts == {("no_face", ""): 1}
        assert not tally.failed
    assert list(read_outcomes(ledger.path)) == [record(0)]
    second = record(1, status="restored")
    ledger.append([second])
    assert list(read_outcomes(ledger.path)) == [record(0), second]
    assert read_tally(ledger.path).duplicates == 0


def test_a_duplicate_line_is_counted_and_the_first_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "l"
    written(path, 2)
    again = record(1, status="failed", reason="x")
    with path.open("ab") as file:
        file.write(encode_line(again.to_json()))
    assert read_tally(path).duplicates == 1
    assert list(read_outcomes(path)) == [record(0), record(1)]


def test_a_tail_torn_anywhere_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # pyright: ignore[reportUnknownLambdaType]
    path = tmp_path / "l"
    lines = written(path, 2)
    whole = b"".join(lines)
    ends = [sum(map(len, lines[: i + 1])) for i in range(2)]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        left = sum(end <= length for end in ends)
        ledger = Ledger(path)
        assert list(ledger.tally.done) == list(range(left))
        assert path.stat().st_size == sum(map(len, lines[:left]))
        ledger.append([record(9)])
        ledger.close()
        assert list(read_tally(path).done) == [*range(left), 9]
        assert read_tally(path).corrupt == 0


def flipped_cases(whole: bytes) -> list[bytes]:
    """Each byte with its lowest, its highest or all bits flipped; and some as a line's end."""
    cases: list[bytes] = []
    for place, byte in enumerate(whole):
        new = {byte ^ (1, 0x80, 0xFF)[place % 3], 10 if place % 5 == 0 else byte} - {byte}
        cases += [whole[:place] + bytes([value]) + whole[place + 1 :] for value in new]
    return cases


def test_a_flip_of_any_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "l"
    lines = written(path, 3)
    for damaged in flipped_cases(b"".join(lines)):
        path.write_bytes(damaged)
        tally = read_tally(path)
        # One line is lost; two if the flip joined it with the next. Nothing else is believed.
        lost = {0, 1, 2} - set(tally.done)
        assert 1 <= len(lost) <= 2
        assert tally.corrupt or tally.end < len(damaged)
        assert all(r == record(r.index) for r in read_outcomes(path))


def test_lost_items_can_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "l"
    lines = written(path, 3)
    path.write_bytes(lines[0] + b"00000000 {}\n" + lines[2] + b"\0" * 5000)
    ledger = Ledger(path)
    assert list(ledger.tally.done) == [0, 2]
    assert ledger.tally.corrupt == 1
    ledger.append([record(1)])
    assert sorted(r.index for r in read_outcomes(path)) == [0, 1, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"00000000 \n",
        b"not a line at all\n",
        encode_line({"a": 1})[:-1],
        b'x {"a":1}\n',
    ],
)
def test_what_is_no_line(line: bytes) -> None:
    assert decode_line(line) is None


def test_capital_digits_or_another_space_are_no_line() -> None:
    lines = (encode_line({"a": number}) for number in range(100))
    line = next(line for line in lines if line[:8] != line[:8].upper())
    assert decode_line(line)
    assert decode_line(line[:8].upper() + line[8:]) is None
    assert decode_line(line[:8] + b"\t" + line[9:]) is None


def test_a_group_is_one_write_and_one_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "l")
    disk = Disk(monkeypatch)
    ledger.append([record(index) for index in range(64)])
    assert (disk.writes, disk.syncs) == (1, 1)
    ledger.append([])
    assert (disk.writes, disk.syncs) == (1, 1)


def append_all(ledger: Ledger, groups: list[list[Record]], saved: list[Record]) -> None:
    for group in groups:
        ledger.append(group)
        saved += group


@pytest.mark.parametrize("short", [0, 1, 100, 350])
@pytest.mark.parametrize("number", [28, 122, 27, 5])  # ENOSPC, EDQUOT, EFBIG, EIO
def test_a_full_disk_leaves_whole_lines_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int, number: int
) -> None:
    groups = [[record(3 * g + i) for i in range(3)] for g in range(5)]
    for call in range(10):  # a write and a sync for each group
        path = tmp_path / f"{short}-{call}"
        ledger = Ledger(path)
        disk = Disk(monkeypatch)
        disk.fail_at, disk.short, disk.error = call, short, OSError(number, "Broken disk")
        saved: list[Record] = []
        with pytest.raises(ResourceError, match="full" if number != 5 else "Broken disk"):
            append_all(ledger, groups, saved)
        assert len(saved) == call // 2 * 3
        assert list(read_outcomes(path)) == saved
        assert read_tally(path).end == path.stat().st_size
        monkeypatch.undo()
        ledger.append(groups[call // 2])  # space is there again
        ledger.close()
        assert list(read_outcomes(path)) == [*saved, *groups[call // 2]]


WRITER = """
import sys
from batch_records import record
from fr_deploy.batch.ledger import Ledger
from pathlib import Path
ledger = Ledger(Path(sys.argv[1]))
done = ledger.outcomes
assert list(ledger.tally.done) == list(range(done)), "a gap"
while True:
    size = 1 + done % 7
    ledger.append([record(done + i, message="x" * (done % 3000)) for i in range(size)])
    done += size
    print(done, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_20_times_loses_nothing_it_had_said(tmp_path: Path) -> None:
    rng, path, said = random.Random(4), tmp_path / "l", 0
    for _ in range(20):
        process = start(WRITER, path)
        assert process.stdout
        first = process.stdout.readline()  # it is at work
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        rest = (first + process.stdout.read()).splitlines()
        process.wait()
        process.stdout.close()
        said = max(said, *(int(word) for word in rest if word))
        outcomes = list(read_outcomes(path))
        assert [r.index for r in outcomes] == list(range(len(outcomes)))
        assert len(outcomes) >= said
        assert read_tally(path).duplicates == 0
    assert said > 100


READER = """
import sys
from pathlib import Path
from fr_deploy.batch.ledger import read_outcomes, read_tally
path = Path(sys.argv[1])
tally = read_tally(path)
count = sum(1 for _ in read_outcomes(path))
assert count == len(tally.done)
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_records(tmp_path: Path, record_property: Any) -> None:
    face = {"box": [1.0] * 4, "landmarks": [[1.0, 2.0]] * 5, "score": 0.9}
    used: list[int] = []
    for count in (20_000, 200_000):
        path = tmp_path / str(count)
        with path.open("wb") as file:
            value = record(0, status="restored", faces=[face]).to_json()
            for index in range(count):
                file.write(encode_line(value | {"index": index}))
        used.append(int(run_to_end(READER, path)))
    growth = (used[1] - used[0]) / 1024
    record_property("figure", f"ledger of 200,000 records: {growth:.1f} MB more than of 20,000")
    assert growth < 4  # 180,000 bits in three sets, and noise


def test_bits_are_a_set_of_numbers() -> None:
    rng, bits, plain = random.Random(1), Bits(), set[int]()
    for _ in range(5000):
        number = rng.choice([rng.randrange(100), rng.randrange(10_000)])
        if rng.random() < 0.6:
            assert bits.add(number) == (number not in plain)
            plain.add(number)
        else:
            assert bits.discard(number) == (number in plain)
            plain.discard(number)
        assert len(bits) == len(plain)
    assert list(bits) == sorted(plain)
    assert all((n in bits) == (n in plain) for n in range(20_000))
    with pytest.raises(ValueError, match="negative"):
        bits.add(-1)


def test_lines_know_their_places(tmp_path: Path) -> None:
    path = tmp_path / "l"
    whole = b"".join(written(path, 4))
    lines = list(read_lines(path))
    assert [whole[x.offset : x.end] for x in lines] == whole.splitlines(keepends=True)
    assert list(read_lines(path, start=lines[2].offset)) == lines[2:]
    assert list(read_lines(tmp_path / "none")) == []
