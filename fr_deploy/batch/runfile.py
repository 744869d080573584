"""`run.json`: what a run was begun with. A resume must be given the same."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fr_deploy import __version__
from fr_deploy.batch.durable import replace_durably
from fr_deploy.batch.plan import Plan
from fr_deploy.errors import ModelError
from fr_deploy.strict_json import of_json

SCHEMA = 1
NAME = "run.json"
_COMPARED = ("plan", "model", "sink")


@dataclass(frozen=True)
class Run:
    """The content of `run.json`."""

    plan: dict[str, Any]
    """`Plan` as JSON values."""
    model: dict[str, Any]
    """Digests of the model's files, as the caller names them."""
    sink: dict[str, Any]
    """How outputs are kept: `kind` is `tree` or `tar`, the latter with its shards' `bytes` and `items`."""
    sources: list[str]
    """As they were given."""
    destination: str
    """Relative to the state's folder if that lies below it, otherwise absolute."""
    items: int
    """Of a list that grows: 0."""
    list_sha256: str | None
    """Of `items.jsonl`; None if it grows."""
    growing: bool = False
    """Items are added while the run goes on."""
    shard: list[int] | None = None
    """[i, n] if this is shard i of n."""
    whole_items: int = 0
    """Items of all shards together."""
    names_sha256: str | None = None
    """Of the names and outputs of all shards' items."""
    refusals: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """What was named and holds no photo: name, reason, message."""
    mixed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """When the run was allowed to go on with something else: `at`, and old and new value of each `fields`."""
    created: float = field(default_factory=time.time)
    """Seconds since 1970."""
    fr_deploy: str = __version__
    schema: int = SCHEMA

    def plan_of(self, where: str = NAME) -> Plan:
        """The plan as an object.

        Raises:
            ModelError: it was written by a version with other settings.
        """
        return of_json(Plan, json.dumps(self.plan).encode(), f"{where}: plan")


def plain(value: Any) -> Any:
    """JSON values of a dataclass or of JSON values: tuples become lists, as when they are read again."""
    return json.loads(json.dumps(asdict(value) if isinstance(value, Plan) else value))


def relative_destination(folder: Path, destination: Path) -> str:
    """How `Run.destination` names a destination."""
    inside = folder.resolve().is_relative_to(destination.resolve())
    return (
        os.path.relpath(destination.resolve(), folder.resolve())
        if inside
        else str(destination.resolve())
    )


def read_run(folder: Path) -> Run | None:
    """Read `run.json` of a state's folder; None: no run was begun there.

    Raises:
        ModelError: it is damaged, or of another version of this file.
    """
    path = folder / NAME
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}; begin again in another folder") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise ModelError(
            f"{path}: schema is {schema!r}, and this version reads {SCHEMA}; "
            "go on with the fr-deploy that began the run"
        )
    names = {f.name for f in fields(Run)}
    if value.keys() != names:
        raise ModelError(f"{path} is damaged: its fields are {sorted(value)}")
    return Run(**value)


def write_run(folder: Path, run: Run) -> None:
    """Write `run.json`, whole or not at all.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    replace_durably(folder / NAME, [(json.dumps(asdict(run), indent=2) + "\n").encode()])


def differences(run: Run, other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Fields in which a run differs from what is asked for now: old and new value by dotted name.

    Args:
        run: as it was begun.
        other: `plan`, `model` and `sink`, JSON values; one that is missing is not compared.
    """
    found: dict[str, list[Any]] = {}
    for name in _COMPARED:
        if name in other:
            old, new = dict(_flat(name, getattr(run, name))), dict(_flat(name, other[name]))
            for key in [*old, *(key for key in new if key not in old)]:
                if old.get(key) != new.get(key) or (key in old) != (key in new):
                    found[key] = [old.get(key), new.get(key)]
    return found


def mixed_run(run: Run, other: Mapping[str, Any]) -> Run:
    """The run as it goes on with other settings, and a note of what they were."""
    note = {"at": time.time(), "fields": differences(run, other)}
    return replace(run, **other, mixed=[*run.mixed, note])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
