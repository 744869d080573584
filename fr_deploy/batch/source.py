"""Which photo is begun next, and when: lazily, so many at a time, and some with nothing else beside them."""

from collections.abc import Iterator

from fr_deploy.batch.item import Item

HELD_BYTES = 2 * 2**30
"""While the photos in flight hold more memory than this, none is begun: 16 of 50 megapixels hold 2.4 GB."""


class Source:
    """The photos that are still to be begun.

    Args:
        items: each with whether it is to be alone; None instead of a pair: there is none at this time.
        in_flight: photos begun at most.
    """

    def __init__(self, items: Iterator[tuple[Item, bool] | None], in_flight: int) -> None:
        self._items = items
        self._in_flight = in_flight
        self._next: tuple[Item, bool] | None = None
        self.exhausted = False

    def stop(self) -> None:
        """Begin none any more."""
        self.exhausted = True
        self._next = None

    def can_begin(self, flying: int, held_bytes: int, alone: bool) -> bool:
        """Whether there is room for one more, and one is there.

        Args:
            flying: photos begun and not yet over.
            held_bytes: memory that they hold.
            alone: one of them is to be alone.
        """
        if self.exhausted or alone or flying >= self._in_flight:
            return False
        if flying and held_bytes > HELD_BYTES:
            return False
        if self._next is None:
            try:
                self._next = next(self._items)
            except StopIteration:
                self.exhausted = True
        return self._next is not None and not (self._next[1] and flying)

    def begin(self) -> tuple[Item, bool]:
        """The next one, after `can_begin` said that there is one."""
        assert self._next is not None
        pair, self._next = self._next, None
        return pair
