"""Faces of many photos in batches: full ones, flushed ones, split ones, and suspects one by one."""

import random

from fr_deploy.batch.batcher import PATIENCE, Batch, Batcher
from fr_deploy.batch.channel import MOST_MEMORIES

LATER = 1.0


def shape(batch: Batch[str] | None) -> list[tuple[str, int, int]]:
    assert batch is not None
    return [(piece.owner, piece.start, piece.stop) for piece in batch.pieces]


def test_a_full_batch_is_taken_even_for_a_busy_device() -> None:
    batcher = Batcher[str](4, LATER)
    batcher.add("a", 1, 0.0)
    batcher.add("b", 2, 0.0)
    assert batcher.take(0.0, idle=True, coming=True) is None
    batcher.add("c", 2, 0.0)
    assert shape(batcher.take(0.0, idle=False, coming=True)) == [
        ("a", 0, 1),
        ("b", 0, 2),
        ("c", 0, 1),
    ]
    assert batcher.faces == 1


def test_what_is_not_full_is_flushed_for_an_idle_device_alone() -> None:
    batcher = Batcher[str](4, LATER)
    batcher.add("a", 1, 10.0)
    assert batcher.wait(10.25) == 0.75
    assert batcher.take(10.9, idle=True, coming=True) is None
    assert batcher.take(11.0, idle=False, coming=True) is None
    assert shape(batcher.take(11.0, idle=True, coming=True)) == [("a", 0, 1)]
    assert batcher.wait(11.0) is None
    assert batcher.take(99.0, idle=True, coming=False) is None


def test_nothing_is_waited_for_when_nothing_comes() -> None:
    batcher = Batcher[str](4, LATER)
    batcher.add("a", 1, 0.0)
    assert shape(batcher.take(0.0, idle=True, coming=False)) == [("a", 0, 1)]


def test_forty_faces_are_split_over_batches() -> None:
    batcher = Batcher[str](16, LATER)
    batcher.add("a", 3, 0.0)
    batcher.add("b", 40, 0.0)
    batcher.add("c", 2, 0.0)
    taken = [shape(batcher.take(0.0, idle=True, coming=False)) for _ in range(3)]
    assert taken == [
        [("a", 0, 3), ("b", 0, 13)],
        [("b", 13, 29)],
        [("b", 29, 40), ("c", 0, 2)],
    ]


def test_a_batch_that_was_not_begun_comes_first_again() -> None:
    batcher = Batcher[str](2, LATER)
    for name in "abcd":
        batcher.add(name, 1, 0.0)
    first = batcher.take(0.0, idle=True, coming=True)
    assert first is not None
    batcher.put_back(first.pieces)
    assert shape(batcher.take(0.0, idle=True, coming=True)) == [("a", 0, 1), ("b", 0, 1)]
    assert batcher.faces == 2


def test_suspects_go_one_by_one_to_an_idle_device_behind_the_others() -> None:
    batcher = Batcher[str](2, LATER)
    for name in "abcd":
        batcher.add(name, 1, 0.0)
    died = batcher.take(0.0, idle=True, coming=True)
    assert died is not None
    batcher.suspect(died.pieces)
    assert shape(batcher.take(0.0, idle=True, coming=True)) == [("c", 0, 1), ("d", 0, 1)]
    assert batcher.take(0.0, idle=False, coming=True) is None
    suspects = [batcher.take(0.0, idle=True, coming=True) for _ in range(2)]
    assert [shape(batch) for batch in suspects] == [[("a", 0, 1)], [("b", 0, 1)]]
    assert all(batch is not None and batch.suspect for batch in suspects)


def test_a_suspect_does_not_wait_for_ever() -> None:
    batcher = Batcher[str](1, LATER)
    batcher.add("suspect", 1, 0.0)
    died = batcher.take(0.0, idle=True, coming=True)
    assert died is not None
    batcher.suspect(died.pieces)
    for number in range(PATIENCE):
        batcher.add(f"other {number}", 1, 0.0)
        assert shape(batcher.take(0.0, idle=False, coming=True)) == [(f"other {number}", 0, 1)]
    batcher.add("last", 1, 0.0)
    assert batcher.take(0.0, idle=False, coming=True) is None, "the device is to become idle"
    assert shape(batcher.take(0.0, idle=True, coming=True)) == [("suspect", 0, 1)]
    assert shape(batcher.take(0.0, idle=True, coming=True)) == [("last", 0, 1)]


def test_a_photo_that_was_given_up_is_forgotten() -> None:
    batcher = Batcher[str](4, LATER)
    batcher.add("a", 10, 0.0)
    batcher.add("b", 1, 0.0)
    first = batcher.take(0.0, idle=True, coming=True)
    assert first is not None
    batcher.suspect(first.pieces)
    batcher.drop("a")
    assert batcher.faces == 1
    assert shape(batcher.take(0.0, idle=True, coming=False)) == [("b", 0, 1)]
    assert batcher.take(0.0, idle=True, coming=False) is None


def test_a_batch_has_no_more_photos_than_descriptors_can_travel() -> None:
    batcher = Batcher[str](1000, LATER)
    for number in range(1000):
        batcher.add(str(number), 1, 0.0)
    assert len(shape(batcher.take(0.0, idle=True, coming=True))) == MOST_MEMORIES


def test_every_face_is_taken_once_in_order() -> None:
    draw = random.Random(0)
    batcher = Batcher[int](16, LATER)
    sizes = [draw.randint(1, 50) for _ in range(300)]
    seen: dict[int, int] = dict.fromkeys(range(len(sizes)), 0)
    waiting = list(enumerate(sizes))
    while waiting or batcher.faces:
        for _ in range(min(len(waiting), draw.randint(0, 3))):
            batcher.add(*waiting.pop(0), 0.0)
        batch = batcher.take(0.0, idle=True, coming=bool(waiting))
        assert batch is None or batch.faces <= 16
        for piece in batch.pieces if batch else ():
            assert piece.start == seen[piece.owner]
            seen[piece.owner] = piece.stop
    assert seen == dict(enumerate(sizes))
