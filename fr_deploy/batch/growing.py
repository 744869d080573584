"""A list that grows while its run goes on: whole lines are added, and a torn last one is dropped."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fr_deploy.batch.durable import AppendFile
from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import count_items, item_line, read_items


class GrowingList:
    """The `items.jsonl` of a run that watches its sources."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Open a list.

        Args:
            path: the file; made if missing and `write`.
            write: items will be added, and a torn last line is cut off.

        Raises:
            ResourceError: it cannot be written.
        """
        self._path = path
        self._file = AppendFile(path) if write else None
        self.count, self._size = count_items(path)
        """Items it has."""
        if self._file:
            self._file.cut(self._size)
        self._marks: deque[tuple[int, int]] = deque(maxlen=1000)

    def append(self, items: Sequence[Item]) -> int:
        """Add items; they are on the disk when this returns.

        Args:
            items: with the indexes that follow: the first is `count`.

        Returns:
            How many items the list has now.

        Raises:
            ResourceError: the disk is full, or cannot be written; none of them was added.
            ValueError: the indexes do not follow, or the list was opened to be read.
        """
        if self._file is None:
            raise ValueError(f"{self._path} was opened to be read")
        if [item.index for item in items] != list(range(self.count, self.count + len(items))):
            raise ValueError(f"{self._path}: the next item's index is {self.count}")
        if items:
            self._file.append(b"".join(map(item_line, items)), sync=True)
            self._marks.append((self.count, self._size))
            self._size = self._file.size
            self.count += len(items)
        return self.count

    def read(self, from_index: int, skip: Callable[[int], bool] | None) -> Iterator[Item]:
        """The items that the list has now; see `read_items`. The file is entered near `from_index`."""
        start = max((at for index, at in self._marks if index <= from_index), default=0)
        return read_items(
            self._path, from_index=from_index, skip=skip, start=start, stop=self._size
        )

    def close(self) -> None:
        """Close it; twice is once."""
        if self._file:
            self._file.close()
