"""A run's folder: its lock, what it was begun with, and its list.

run.json       settings, model, sources; written last, so a folder without it holds no run
items.jsonl    the list, frozen; or growing, in watch mode
ledger.jsonl   outcomes
begun.jsonl    what was begun, for items that take the whole run down
journal        the commit that is under way
lock           held by the one run
parts/         outputs that are not yet committed
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fr_deploy.batch import runfile
from fr_deploy.batch.durable import replace_durably
from fr_deploy.batch.folder import clear_torn, make_part_folder, make_state_folder
from fr_deploy.batch.growing import GrowingList
from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import Listed, check_items, read_items, write_items
from fr_deploy.batch.lock import Lock
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.runfile import Run
from fr_deploy.errors import ModelError, UsageError

if TYPE_CHECKING:  # brings Pillow
    from fr_deploy.inputs import Refusal

TREE: Mapping[str, Any] = {"kind": "tree"}
"""The sink that keeps each output as a file."""


class State:
    """A state folder, open. With `write`, it is locked until `close`.

    `run` is None until a run was begun: by `write_list` (or not, if the list is to grow), then `create`.
    """

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        """Open a folder, and make it if `write`.

        Raises:
            UsageError: another run is at work in it; it holds no run, and is to be read; or a file stands there.
            ModelError: its run.json is damaged, or of another version.
            ResourceError: it cannot be written.
        """
        self.folder = folder
        self.ledger_path = folder / "ledger.jsonl"
        self.begun_path = folder / "begun.jsonl"
        self.journal_path = folder / "journal"
        self.pictures_path = folder / "pictures.jsonl"
        self.items_path = folder / "items.jsonl"
        self.lock_path = folder / "lock"
        self._listed: Listed | None = None
        self._shard: tuple[int, int] | None = None
        self._growing: GrowingList | None = None
        self._lock: Lock | None = None
        if write:
            make_state_folder(folder)
            self._lock = Lock(self.lock_path)
        try:
            self.run = runfile.read_run(folder)
            if write:
                clear_torn(folder)
            elif self.run is None:
                raise _no_run(folder)
            if self.run and self.run.growing:
                self._growing = GrowingList(self.items_path, write=write)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    @property
    def begun(self) -> Run:
        """What the run was begun with.

        Raises:
            UsageError: none was begun.
        """
        if self.run is None:
            raise _no_run(self.folder)
        return self.run

    @property
    def destination(self) -> Path:
        """Where the run's outputs go."""
        return (self.folder / self.begun.destination).resolve()

    def write_list(self, items: Iterable[Item], *, shard: tuple[int, int] | None = None) -> int:
        """Write the list of a run that is about to begin, in constant memory, whole or not at all.

        Args:
            items: the whole list by rising index; an error that it raises passes through.
            shard: (i, n): keep only the items of shard i of n, from 0.

        Returns:
            How many items were kept.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        self._refuse_second()
        self._listed = write_items(self.items_path, items, shard=shard)
        self._shard = shard
        return self._listed.items

    def create(
        self,
        plan: Plan,
        model: Mapping[str, Any],
        *,
        sources: Sequence[str],
        destination: Path,
        sink: Mapping[str, Any] = TREE,
        refusals: "Sequence[Refusal]" = (),
    ) -> Run:
        """Begin the run: from here on its list and its settings are fixed.

        Args:
            plan: what decides the outputs.
            model: digests of the model's files, JSON values.
            sources: as the user named them.
            destination: the folder of the outputs.
            sink: as in `Run.sink`.
            refusals: what the listing refused.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        self._refuse_second()
        listed = self._listed
        if listed is None:  # a list may lie there, of a beginning that came to nothing
            replace_durably(self.items_path, [])
        self.run = Run(
            plan=runfile.plain(plan),
            model=runfile.plain(dict(model)),
            sink=runfile.plain(dict(sink)),
            sources=list(sources),
            destination=runfile.relative_destination(self.folder, destination),
            items=listed.items if listed else 0,
            list_sha256=listed.sha256 if listed else None,
            growing=listed is None,
            shard=list(self._shard) if self._shard else None,
            whole_items=listed.whole_items if listed else 0,
            names_sha256=listed.names_sha256 if listed else None,
            refusals=[dict(vars(refusal)) for refusal in refusals],
        )
        runfile.write_run(self.folder, self.run)
        if self.run.growing:
            self._growing = GrowingList(self.items_path, write=True)
        return self.run

    def check_same(
        self,
        plan: Plan,
        model: Mapping[str, Any],
        *,
        sink: Mapping[str, Any] | None = None,
        force_mixed: bool = False,
    ) -> None:
        """See that a run goes on as it was begun.

        Args:
            plan: what is asked for now.
            model: digests of the model now.
            sink: the sink now; None: not compared.
            force_mixed: go on all the same; run.json then holds the new settings and a note of the old.

        Raises:
            ModelError: something differs; the message names the first field and both values.
        """
        other = {"plan": runfile.plain(plan), "model": runfile.plain(dict(model))}
        if sink is not None:
            other["sink"] = runfile.plain(dict(sink))
        found = runfile.differences(self.begun, other)
        if not found:
            return
        if not force_mixed:
            name, (old, new) = next(iter(found.items()))
            more = f" and {len(found) - 1} more differ" if len(found) > 1 else ""
            raise ModelError(
                f"{self.folder}: {name} was {old!r} when the run began and is {new!r} now{more}; "
                "resume with what it began with, choose another destination, or add --force-mixed"
            )
        self.run = runfile.mixed_run(self.begun, other)
        runfile.write_run(self.folder, self.run)

    def check_list(self) -> None:
        """See that the list is the one the run began with; reads it through (0.2 s for a million items).

        Raises:
            ModelError: it is missing, or was changed.
        """
        if self.begun.list_sha256 is not None:
            check_items(self.items_path, self.begun.list_sha256)

    @property
    def items(self) -> int:
        """How many items the list has, of a list that grows: until now."""
        return self._growing.count if self._growing else self.begun.items

    def read_list(
        self, from_index: int = 0, *, skip: Callable[[int], bool] | None = None
    ) -> Iterator[Item]:
        """The list's items in order, in constant memory.

        Args:
            from_index: items with a smaller index are passed over.
            skip: says of an index that its item is passed over, such as `ledger.is_done`.

        Raises:
            ModelError: a line is damaged.
        """
        if self._growing:
            return self._growing.read(from_index, skip)
        return read_items(self.items_path, from_index=from_index, skip=skip)

    def append_items(self, items: Sequence[Item]) -> int:
        """Add items to a list that grows; returns how many it has now.

        Raises:
            ResourceError: as `GrowingList.append`.
            ValueError: likewise, or the list does not grow.
        """
        if self._growing is None:
            raise ValueError(f"{self.items_path} does not grow")
        return self._growing.append(items)

    def part_folder(self) -> Path:
        """The folder for outputs that are not yet committed, made if missing.

        Raises:
            UsageError: no run was begun.
            ResourceError: as `make_part_folder`.
        """
        return make_part_folder(self.folder, self.destination)

    def close(self) -> None:
        """Give the lock back; twice is once."""
        if self._growing:
            self._growing.close()
        if self._lock:
            self._lock.close()

    def _refuse_second(self) -> None:
        if self.run is not None:
            raise UsageError(f"{self.folder} holds a run; resume it, or name another folder")


def _no_run(folder: Path) -> UsageError:
    return UsageError(f"{folder} holds no run; begin one with: fr-deploy serve-batch SRC DST")
