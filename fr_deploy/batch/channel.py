"""Messages between the processes of a run: a small one through a socket, large arrays in memory that both map.

A message is one datagram, so none is ever half received. What is large lies in memfds, which travel beside the
datagram as file descriptors; the kernel frees them with the last process that holds them, however it ends.
"""

import io
import mmap
import os
import pickle
import socket
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

LARGE = 64 * 2**10
"""Buffers of so many bytes travel in memory that is shared."""
INLINE = 32 * 2**10
"""A message of more bytes is itself put into a memfd: two always fit into a socket's buffer of 208 KiB."""
MOST_BODY = 2**30
"""Bytes of a message, without what lies in the memories it names."""
MOST_MEMORIES = 250
"""The kernel passes 253 file descriptors beside one datagram."""
_ALIGN = 64
_FD = struct.Struct("@i")
_ANCILLARY = socket.CMSG_SPACE(253 * _FD.size)
_SEND_SECONDS = 10.0
# What a message to the parent may be made of: its sender handles hostile files, and may be under their control.
_TRUSTED = {
    "builtins": ("bool", "int", "float", "complex", "str", "bytes"),
    "fr_deploy.batch.channel": ("Parcel",),
    "fr_deploy.batch.item": ("Output", "Record"),
    "fr_deploy.batch.messages": ("Fault", "PreparedParcels", "Ready", "Reply", "RestoredParcels"),
    "fr_deploy.batch.work": ("Finished",),
}


class GarbledError(Exception):
    """What arrived is no message of ours."""


class Memory:
    """A memfd that this process holds open until nothing refers to it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Let go of it; a mapping lives on."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Parcel:
    """An object whose large buffers lie in a memfd: sent on without being mapped, opened where it is needed."""

    pickled: bytes
    spans: tuple[tuple[int, int], ...] = ()
    """Offset and size of each buffer."""
    memory: Memory | None = None
    size: int = 0
    """Bytes of the memfd."""

    @staticmethod
    def pack(value: Any) -> "Parcel":
        """Pickle an object; its contiguous buffers from 64 KiB go to a memfd.

        Raises:
            OSError: no memory, or no file descriptor is left.
        """
        buffers: list[memoryview] = []

        def aside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < LARGE:
                return True
            buffers.append(raw)
            return False

        file = io.BytesIO()
        _Pickler(file, buffer_callback=aside).dump(value)
        if not buffers:
            return Parcel(file.getvalue())
        memory, spans, size = _written(buffers)
        return Parcel(file.getvalue(), spans, memory, size)

    def open(self) -> Any:
        """The object; its large arrays lie in private copy-on-write pages of the memfd and may be written to."""
        if self.memory is None:
            return pickle.loads(self.pickled)
        mapped = mmap.mmap(
            self.memory.fd, self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        )
        view = memoryview(mapped)
        return pickle.loads(self.pickled, buffers=[view[at : at + n] for at, n in self.spans])

    @property
    def plausible(self) -> bool:
        """Whether its parts are what they are said to be; one that was received may be anything."""
        parts = vars(self)
        return isinstance(parts["memory"], Memory | None) and isinstance(parts["size"], int)

    def close(self) -> None:
        """Give the memory back, as far as this process holds it."""
        if self.memory is not None:
            self.memory.close()


class Channel:
    """One end of a socketpair, whose messages are pickled objects that may hold a `Memory`.

    Args:
        sock: an AF_UNIX SOCK_SEQPACKET socket, blocking.
        wary: accept only the plain types that children send.
    """

    def __init__(self, sock: socket.socket, *, wary: bool = False) -> None:
        self._sock = sock
        self._wary = wary
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_SEND_SECONDS))

    def fileno(self) -> int:
        """The socket's, for a selector."""
        return self._sock.fileno()

    def send(self, message: Any) -> None:
        """Send one message; the memories in it stay open here.

        Raises:
            OSError: the other end is gone, or has not read for 10 seconds.
        """
        file = io.BytesIO()
        memories: list[Memory] = []
        _Pickler(file, memories=memories).dump(message)
        body = file.getvalue()
        if len(body) > INLINE:
            aside, spans, _ = _written([memoryview(body)])
            memories.insert(0, aside)
            body = b"M" + spans[0][1].to_bytes(8, "little")
        else:
            body = b"I" + body
        socket.send_fds(self._sock, [body], [memory.fd for memory in memories])

    def receive(self, *, wait: bool = True) -> Any:
        """The next message.

        Raises:
            BlockingIOError: there is none, and `wait` is off.
            EOFError: the other end is gone.
            GarbledError: it is no message.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            body, ancillary, flags, _ = self._sock.recvmsg(INLINE + 1, _ANCILLARY, flags)
        except ConnectionError as error:
            raise EOFError from error
        memories = [Memory(fd) for kind in ancillary for fd in _descriptors(*kind)]
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise GarbledError("a message cut short: too long, or too few file descriptors left")
        if not body:
            raise EOFError
        try:
            return self._understood(body, memories)
        except Exception as error:  # a damaged pickle can raise anything
            raise GarbledError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close this end; the other one reads the end of the file."""
        self._sock.close()

    def _understood(self, body: bytes, memories: list[Memory]) -> Any:
        if body[:1] == b"M":
            size = int.from_bytes(body[1:9], "little")
            if size > MOST_BODY:
                raise ValueError(f"a message of {size} bytes")
            aside = memories.pop(0)
            body = os.pread(aside.fd, size, 0)
        elif body[:1] == b"I":
            body = body[1:]
        else:
            raise ValueError("no message")
        return _Unpickler(io.BytesIO(body), memories, self._wary).load()


class _Pickler(pickle.Pickler):
    """Puts memories aside, copies arrays with gaps, and makes numpy's scalars plain."""

    def __init__(
        self, file: io.BytesIO, *, memories: list[Memory] | None = None, **options: Any
    ) -> None:
        super().__init__(file, 5, **options)
        self._memories = memories
        self._numpy = sys.modules.get("numpy")

    def persistent_id(self, obj: Any) -> int | None:
        if self._memories is None or not isinstance(obj, Memory):
            return None
        if obj not in self._memories:
            self._memories.append(obj)
        return self._memories.index(obj)

    def reducer_override(self, obj: Any) -> Any:
        if self._numpy is None:
            return NotImplemented
        if isinstance(obj, self._numpy.generic):
            plain = obj.item()
            return type(plain), (plain,)
        # An array with gaps would be pickled in band, through another copy.
        if type(obj) is self._numpy.ndarray and obj.nbytes >= LARGE and not obj.flags.forc:
            return self._numpy.ascontiguousarray(obj).__reduce_ex__(5)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memories: list[Memory], wary: bool) -> None:
        super().__init__(file)
        self._memories = memories
        self._wary = wary

    def persistent_load(self, pid: Any) -> Memory:
        return self._memories[pid]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if self._wary and global_name not in _TRUSTED.get(module_name, ()):
            raise pickle.UnpicklingError(f"{module_name}.{global_name} does not belong here")
        return super().find_class(module_name, global_name)


def _written(buffers: Collection[memoryview]) -> tuple[Memory, tuple[tuple[int, int], ...], int]:
    """A memfd that holds the buffers, each from a multiple of 64 bytes on."""
    memory = Memory(os.memfd_create("fr-deploy", os.MFD_CLOEXEC))
    spans: list[tuple[int, int]] = []
    end = 0
    for buffer in buffers:
        start = -(-end // _ALIGN) * _ALIGN
        end = start + buffer.nbytes
        at = start
        while at < end:  # a write ends at 2 GiB
            at += os.pwrite(memory.fd, buffer[at - start :], at)
        spans.append((start, buffer.nbytes))
    return memory, tuple(spans), end


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    # socket.recv_fds does not pass its flags on (Python 3.11), and without CLOEXEC they leak into programs.
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    return [fd for (fd,) in _FD.iter_unpack(data[: len(data) // _FD.size * _FD.size])]


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
