"""A set of texts in 8 bytes each."""

from array import array
from bisect import bisect_left
from hashlib import blake2b

_RECENT = 10_000


class CompactSet:
    """Texts by 64 bits of their digest: among two million, two are equal with a chance of 1 in 9 million."""

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def __contains__(self, text: str) -> bool:
        key = _key(text)
        place = bisect_left(self._sorted, key)
        found = place < len(self._sorted) and self._sorted[place] == key
        return found or key in self._recent

    def add(self, text: str) -> None:
        """Put one in."""
        self._recent.add(_key(text))
        if len(self._recent) > max(_RECENT, len(self._sorted) // 8):
            self._sorted = array("Q", sorted({*self._sorted, *self._recent}))
            self._recent.clear()


def _key(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
