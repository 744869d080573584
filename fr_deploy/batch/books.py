"""What a run keeps while it is at work, opened together and in the right order."""

from dataclasses import dataclass
from pathlib import Path

from fr_deploy.batch.begun import Begun
from fr_deploy.batch.folder import clear_parts
from fr_deploy.batch.journal import Journal, finish_commit
from fr_deploy.batch.ledger import Ledger
from fr_deploy.batch.place import Placer
from fr_deploy.batch.sinks import Sink, TreeSink
from fr_deploy.batch.state import State
from fr_deploy.batch.tar_sink import SHARD_BYTES, SHARD_ITEMS, TarSink
from fr_deploy.errors import ModelError


@dataclass
class Books:
    """The open files of a run."""

    ledger: Ledger
    begun: Begun
    journal: Journal
    part_folder: Path
    """Empty at the opening."""
    saved: int
    """Outcomes of a commit in which an earlier run was killed, finished now."""
    torn: int
    """Parts of earlier runs that were removed; their items run again."""

    def close(self, *, orderly: bool = True) -> None:
        """Close all; twice is once. Parts that no commit waits for are removed.

        Args:
            orderly: as in `Begun.close`.
        """
        if orderly and not self.journal.closed:
            waiting = [record for entry in self.journal.left() for record in entry.records]
            if all(self.ledger.is_done(record.index) for record in waiting):
                clear_parts(self.part_folder)  # of photos whose process was killed, or interrupted
        self.begun.close(orderly=orderly)
        self.ledger.close()
        self.journal.close()


def open_books(state: State) -> Books:
    """Open a run's files for writing: finish the commit that an earlier run was killed in, then clear its parts.

    Args:
        state: open with `write`, its run begun.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    part_folder = state.part_folder()
    ledger, journal = Ledger(state.ledger_path), Journal(state.journal_path)
    placer = Placer(state.destination)
    saved = finish_commit(journal, ledger, placer, ledger.tally.redone.__contains__)
    torn = clear_parts(part_folder)
    begun = Begun(state.begun_path, ledger.tally)
    return Books(ledger, begun, journal, part_folder, saved, torn)


def make_sink(state: State, books: Books, *, overwrite: bool = False) -> Sink:
    """The sink that a run was begun with.

    Args:
        state: its run says which.
        books: of the same state.
        overwrite: replace files that stand at outputs' places, which are no outputs of this run.

    Raises:
        ModelError: run.json names a sink that this version does not know.
    """
    sink, tally = state.begun.sink, books.ledger.tally
    match sink:
        case {"kind": "tree"}:
            is_ours = tally.redone.__contains__
            return TreeSink(state.destination, overwrite=overwrite, is_ours=is_ours)
        case {"kind": "tar"}:
            shard = state.begun.shard
            prefix = f"results-{shard[0]}-of-{shard[1]}" if shard else "results"
            return TarSink(
                state.destination,
                books.part_folder,
                shard_bytes=int(sink.get("bytes", SHARD_BYTES)),
                shard_items=int(sink.get("items", SHARD_ITEMS)),
                used=tally.last_shard,
                prefix=prefix,
            )
        case _:
            raise ModelError(f"{state.folder}: sink is {sink!r}; this version knows tree and tar")
