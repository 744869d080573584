"""Messages of a run: what arrives is what was sent, nothing is copied on the way, nothing stays open."""

import mmap
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fr_deploy.batch.channel import INLINE, LARGE, Channel, GarbledError, Memory, Parcel
from fr_deploy.batch.item import Record
from fr_deploy.batch.messages import Fault, PreparedParcels, Ready, Reply
from fr_deploy.batch.work import Finished

Pair = tuple[Channel, Channel, socket.socket]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield Channel(ours, wary=True), Channel(theirs), theirs
    ours.close()
    theirs.close()


def prepared(value: Any, crops: Any) -> Reply:
    return Reply(PreparedParcels(1, Parcel.pack(value), Parcel.pack(crops)), 0.5)


def test_large_arrays_lie_in_a_memfd_and_small_ones_in_the_message() -> None:
    large = np.arange(LARGE, dtype=np.uint8).reshape(256, -1)
    small = np.arange(10)
    parcel = Parcel.pack({"large": large, "small": small, "text": "x", "twice": large})
    assert len(parcel.spans) == 1
    assert len(parcel.pickled) < 1000
    back = parcel.open()
    assert np.array_equal(back["large"], large)
    assert np.array_equal(back["small"], small)
    assert back["twice"] is back["large"]
    assert Parcel.pack(small).memory is None


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3 * LARGE, dtype=np.uint8).reshape(-1, 64)[::-1],
        np.arange(3 * LARGE, dtype=np.uint8).reshape(-1, 64).T,
        np.arange(LARGE, dtype=np.float64).reshape(2, -1, 4)[:, ::2],
        np.empty((0, 512, 512, 3), np.uint8),
        np.array(7.5),
    ],
)
def test_arrays_of_any_layout_come_back(array: np.ndarray[Any, Any]) -> None:
    parcel = Parcel.pack(array)
    assert len(parcel.pickled) < 1000, "a large array travelled in the message"
    back = parcel.open()
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_what_the_receiver_changes_is_its_own() -> None:
    parcel = Parcel.pack(np.ones(LARGE, np.uint8))
    first = parcel.open()
    first[:] = 5
    parcel.close()
    assert first.sum() == 5 * LARGE, "a mapping outlives its descriptor"
    parcel = Parcel.pack(np.ones(LARGE, np.uint8))
    parcel.open()[:] = 5
    assert parcel.open().sum() == LARGE


def test_a_parcel_is_forwarded_without_being_mapped(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, _ = pair
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    theirs.send(prepared({"rgb": photo}, photo[:64]))
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", None)
        reply: Any = ours.receive()
        ours.send([reply.value.crops, reply.value.crops, reply.value.prepared])
    crops, same, rest = theirs.receive()
    assert crops.memory is same.memory, "one descriptor travels once"
    assert np.array_equal(crops.open(), photo[:64])
    assert np.array_equal(rest.open()["rgb"], photo)


def test_no_descriptor_is_left_over_a_thousand_items(pair: Pair) -> None:
    ours, theirs, _ = pair
    crops = np.zeros(LARGE, np.uint8)
    before = open_files()
    for _ in range(1000):
        theirs.send(prepared(crops, crops))
        reply: Any = ours.receive()
        ours.send(reply.value.crops)
        assert theirs.receive().open().nbytes == LARGE
        del reply
    assert open_files() == before


def test_a_message_of_any_size_arrives_whole(pair: Pair) -> None:
    ours, theirs, _ = pair
    for size in (0, 100, INLINE - 200, INLINE, 5 * 2**20):
        record = Record(0, "id", "name", "restored")
        theirs.send(Reply(Finished(record, ["a"], [(bytes(size), b"x")]), 1.0))
        back: Any = ours.receive()
        assert len(back.value.pictures[0][0]) == size


def test_numbers_of_numpy_arrive_as_plain_ones(pair: Pair) -> None:
    ours, theirs, _ = pair
    record = Record(0, "id", "name", "restored", ms={"decode": np.float64(1.5)})
    record.faces = [{"score": np.float32(0.5), "n": np.int64(3), "yes": np.bool_(True)}]
    theirs.send(Reply(record, np.float64(2)))
    back: Any = ours.receive()
    assert [type(value) for value in back.value.faces[0].values()] == [float, int, bool]
    assert type(back.value.ms["decode"]) is float


def test_the_end_and_the_lack_of_a_message(pair: Pair) -> None:
    ours, theirs, sock = pair
    with pytest.raises(BlockingIOError):
        ours.receive(wait=False)
    theirs.send(Ready())
    sock.close()
    assert ours.receive(wait=False) == Ready()
    with pytest.raises(EOFError):
        ours.receive(wait=False)
    with pytest.raises(OSError, match="pipe"):
        ours.send(Ready())


def hostile(name: str) -> Any:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (name,)

    return Hostile()


def test_garbage_is_refused(pair: Pair, tmp_path: Path) -> None:
    ours, _, sock = pair
    mark = tmp_path / "mark"
    good = pickle.dumps(Fault("", "", ""), 5)
    bodies = [
        b"x",
        b"Inonsense",
        b"I" + good[:-5],
        b"I" + pickle.dumps(hostile(str(mark))),
        b"I" + pickle.dumps(Path("x")),
        b"I" + b"cfr_deploy.batch.channel\nos.system\n.",
        b"I" + b"cfr_deploy.batch.channel\nos\n.",
        b"M" + (100).to_bytes(8, "little"),
        b"M" + (2**62).to_bytes(8, "little"),
        b"y" * (INLINE + 100),
    ]
    before = open_files()
    for body in bodies:
        sock.send(body)
        with pytest.raises(GarbledError):
            ours.receive()
    assert not mark.exists()
    assert open_files() == before
    sock.send(b"I" + good)
    assert ours.receive() == Fault("", "", "")


def test_descriptors_of_refused_messages_are_closed(pair: Pair) -> None:
    ours, _, sock = pair
    memory = Memory(os.memfd_create("test"))
    before = open_files()
    socket.send_fds(sock, [b"Inonsense"], [memory.fd] * 20)
    with pytest.raises(GarbledError):
        ours.receive()
    assert open_files() == before
