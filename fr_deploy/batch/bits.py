"""A set of indexes, one bit each: a million of them are 125 kB."""

from collections.abc import Iterator


class Bits:
    """Small numbers from 0 on; grows by itself."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        place = index >> 3
        return place < len(self._bytes) and bool(self._bytes[place] >> (index & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        for place, byte in enumerate(self._bytes):
            if byte:
                yield from (place * 8 + bit for bit in range(8) if byte >> bit & 1)

    def add(self, index: int) -> bool:
        """Put a number in; True if it was not.

        Raises:
            ValueError: it is negative.
        """
        if index < 0:
            raise ValueError(f"index {index} is negative")
        place, mask = index >> 3, 1 << (index & 7)
        if place >= len(self._bytes):
            self._bytes.extend(bytes(place + 1 + place // 8 - len(self._bytes)))
        if self._bytes[place] & mask:
            return False
        self._bytes[place] |= mask
        self._count += 1
        return True

    def discard(self, index: int) -> bool:
        """Take a number out; True if it was in."""
        if index not in self:
            return False
        self._bytes[index >> 3] ^= 1 << (index & 7)
        self._count -= 1
        return True
