"""The states of all shards of a run, `shard-i-of-N`, into one that looks as if a single run had done it."""

import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from heapq import merge as merge_sorted
from pathlib import Path

from fr_deploy.batch import runfile
from fr_deploy.batch.durable import replace_durably
from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import item_line
from fr_deploy.batch.ledger import read_standing, read_tally
from fr_deploy.batch.lock import Lock
from fr_deploy.batch.runfile import Run
from fr_deploy.batch.state import State
from fr_deploy.errors import ModelError, UsageError

_NAME = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Merged:
    """What was merged."""

    shards: int
    items: int


def merge(folder: Path) -> Merged:
    """Merge the shards' states below a folder into it, in constant memory but for 8 bytes an item.

    The shards' states are left as they are. `run.json` is written last, so a merge that is killed can be done again.

    Args:
        folder: `.fr-deploy` of the destination that the shards share.

    Raises:
        UsageError: a shard is missing, at work or not finished; or the folder holds a run already.
        ModelError: shards differ in their settings, model or list.
        ResourceError: the disk is full, or cannot be written.
    """
    with ExitStack() as stack:
        places = _find(folder)
        stack.callback(Lock(folder / "lock").close)
        if runfile.read_run(folder) is not None:
            raise UsageError(f"{folder} holds a run, or was merged already; nothing was changed")
        states = [stack.enter_context(State(place)) for place in places]
        _check_equal(states)
        for state in states:
            _check_finished(state)
        _merge(folder, states)
        return Merged(len(states), sum(state.items for state in states))


def _find(folder: Path) -> list[Path]:
    found: dict[int, dict[int, Path]] = {}
    for name in os.listdir(folder) if folder.is_dir() else ():
        if match := _NAME.fullmatch(name):
            found.setdefault(int(match[2]), {})[int(match[1])] = folder / name
    if not found:
        raise UsageError(
            f"{folder} holds no shards; make them with: serve-batch SRC DST --shard 0/2"
        )
    if len(found) > 1:
        numbers = " and ".join(str(number) for number in sorted(found))
        raise UsageError(f"{folder} holds shards of runs of {numbers}; remove those of one of them")
    ((number, shards),) = found.items()
    if missing := [i for i in range(number) if i not in shards]:
        raise UsageError(
            f"{folder}: {len(missing)} of {number} shards missing, first {missing[0]}; "
            f"run: fr-deploy serve-batch SRC DST --shard {missing[0]}/{number}"
        )
    return [shards[i] for i in range(number)]


def _check_equal(states: Sequence[State]) -> None:
    first = states[0].begun
    for place, state in enumerate(states):
        run = state.begun
        if run.shard != [place, len(states)]:
            raise ModelError(f"{state.folder} holds shard {run.shard}; name it as it was made")
        other = {"plan": run.plan, "model": run.model, "sink": run.sink}
        found = runfile.differences(first, other)
        for name in ("names_sha256", "whole_items"):
            if getattr(first, name) != getattr(run, name):
                found[f"the list ({name})"] = [getattr(first, name), getattr(run, name)]
        if found:
            name, (old, new) = next(iter(found.items()))
            raise ModelError(
                f"{state.folder} differs from {states[0].folder}: {name} is {new!r} there and {old!r} here; "
                f"remove one of them and run its shard again: --shard {place}/{len(states)}"
            )


def _check_finished(state: State) -> None:
    state.check_list()
    done = read_tally(state.ledger_path).done
    left = sum(1 for _ in state.read_list(skip=done.__contains__))
    if left:
        raise UsageError(
            f"{state.folder}: {left} of {state.items} items have no outcome; "
            f"run: fr-deploy serve-batch resume {state.folder}"
        )


def _merge(folder: Path, states: Sequence[State]) -> None:
    first = states[0].begun
    offsets = _offsets(states, first.whole_items)
    digests = sha256(), sha256()

    def items() -> Iterator[bytes]:
        for _, item in _in_order(states):
            digests[0].update(f"{item.name}\0{item.output}\n".encode("utf-8", "surrogateescape"))
            line = item_line(item)
            digests[1].update(line)
            yield line

    replace_durably(folder / "items.jsonl", items())
    if digests[0].hexdigest() != first.names_sha256:
        raise ModelError(
            f"{folder}: the shards' items together are not the list; run the shards again"
        )
    replace_durably(folder / "ledger.jsonl", _ledger_lines(states, offsets))
    _merge_pictures(folder, states)
    runfile.write_run(folder, _merged_run(folder, states, digests[1].hexdigest()))


def _in_order(states: Sequence[State]) -> Iterator[tuple[int, Item]]:
    """All items by their index, with the number of their shard."""

    def of(shard: int, state: State) -> Iterator[tuple[int, Item]]:
        return ((shard, item) for item in state.read_list())

    lists = [of(shard, state) for shard, state in enumerate(states)]
    return merge_sorted(*lists, key=lambda pair: pair[1].index)


def _offsets(states: Sequence[State], items: int) -> "array[int]":
    """Where the outcome of each item stands in the ledger of its shard, by index."""
    offsets = array("q", [-1]) * items
    for state in states:
        for line, value in read_standing(state.ledger_path):
            if value["index"] >= items:
                raise ModelError(
                    f"{state.ledger_path} has an outcome for {value['name']!r}, which is not listed"
                )
            offsets[value["index"]] = line.offset
    return offsets


def _ledger_lines(states: Sequence[State], offsets: "array[int]") -> Iterator[bytes]:
    with ExitStack() as stack:
        files = [stack.enter_context(state.ledger_path.open("rb")) for state in states]
        for shard, item in _in_order(states):
            files[shard].seek(offsets[item.index])
            yield files[shard].readline()


def _merge_pictures(folder: Path, states: Sequence[State]) -> None:
    if any(state.pictures_path.exists() for state in states):

        def chunks() -> Iterator[bytes]:
            for state in states:
                if state.pictures_path.exists():
                    with state.pictures_path.open("rb") as file:
                        while chunk := file.read(2**20):
                            yield chunk

        replace_durably(folder / "pictures.jsonl", chunks())


def _merged_run(folder: Path, states: Sequence[State], list_sha256: str) -> Run:
    runs = [state.begun for state in states]
    refusals = {json.dumps(refusal): refusal for run in runs for refusal in run.refusals}
    return replace(
        runs[0],
        destination=runfile.relative_destination(folder, states[0].destination),
        items=runs[0].whole_items,
        list_sha256=list_sha256,
        shard=None,
        refusals=list(refusals.values()),
        mixed=[note for run in runs for note in run.mixed],
        created=min(run.created for run in runs),
    )
