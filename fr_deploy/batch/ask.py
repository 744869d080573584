"""How a run was asked for: kept as `ask.json` beside its list, so that its destination alone resumes it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fr_deploy.batch.durable import replace_durably
from fr_deploy.batch.modelfiles import FAKE
from fr_deploy.batch.plan import Plan
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.strict_json import of_json

NAME = "ask.json"


@dataclass(frozen=True)
class Ask:
    """The options of a run that are no part of its plan."""

    sources: tuple[str, ...]
    """As named: files, folders, patterns, lists, archives, addresses, `-`."""
    devices: tuple[str, ...]
    """`auto`, `cpu`, `cuda`, `cuda:N`, or `fake:BASEms+FACEms`; a process each."""
    model: str = "lafr-mini"
    loras: tuple[str, ...] = ()
    engines: str | None = None
    allow_unverified: bool = False
    trust: str | None = None
    dtype: str = "auto"
    backend: str = "auto"
    attention: str = "auto"
    batch: int | None = None
    preparers: int | None = None
    finishers: int | None = None
    sink: str = "tree"
    sidecar: bool = False
    watch: bool = False
    allow_http: bool = False
    allow_private: bool = False
    overwrite: bool = False
    pictures: bool = False
    """Keep small pictures and measure identities, for a report."""

    @property
    def fake(self) -> bool:
        """Whether a stand-in takes the place of a model."""
        return any(device.startswith(FAKE) for device in self.devices)

    def model_options(self) -> dict[str, Any]:
        """What decides the model: see `model_digests`."""
        names = ("model", "loras", "engines", "devices", "dtype", "backend", "attention")
        return {name: getattr(self, name) for name in names}

    def sink_settings(self) -> dict[str, Any]:
        """What decides how outputs are kept, as run.json has it."""
        return {"kind": self.sink, "sidecar": self.sidecar}

    def changed(self, given: Mapping[str, Any]) -> "Ask":
        """The same with other values, for options that may differ from start to start."""
        return replace(self, **given)


def anchored(ask: Ask) -> Ask:
    """The same with whole paths, so that it means the same wherever it is read."""

    def whole(text: str) -> str:
        return os.path.abspath(text) if os.path.lexists(text) else text

    def whole_lora(text: str) -> str:
        path, colon, rest = text.partition(":")
        return whole(path) + colon + rest if not os.path.lexists(text) else whole(text)

    return replace(
        ask,
        sources=tuple(whole(source) for source in ask.sources),
        model=whole(ask.model) if Path(ask.model).is_dir() else ask.model,
        loras=tuple(whole_lora(text) for text in ask.loras),
        engines=os.path.abspath(ask.engines) if ask.engines else None,
        trust=os.path.abspath(ask.trust) if ask.trust else None,
    )


def write_ask(folder: Path, ask: Ask) -> None:
    """Keep it, whole or not at all.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    replace_durably(folder / NAME, [(json.dumps(asdict(ask), indent=2) + "\n").encode()])


def read_ask(folder: Path) -> Ask:
    """Read it again.

    Raises:
        UsageError: no run was begun there.
        ModelError: it is damaged, or of another version.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no run; begin one with: fr-deploy serve-batch SRC DST"
        ) from None
    return of_json(Ask, data, str(path))


def check_sources(old: Sequence[str], new: Sequence[str], folder: Path) -> None:
    """See that a run goes on with the sources it was begun with: its list is frozen.

    Raises:
        ModelError: they are others.
    """
    if list(old) != list(new):
        raise ModelError(
            f"{folder}: the run was begun with {' '.join(old)!r} and is given {' '.join(new)!r}; "
            "its list is frozen: resume it with the same, or choose another destination"
        )


def plan_of(given: Mapping[str, Any]) -> Plan:
    """The plan of a command's options.

    Args:
        given: every option that decides the outputs, by the name of its field; `max_pixels` is that of `Limits`.

    Raises:
        UsageError: as `RestoreOptions`.
    """
    from fr_deploy.settings import Limits, RestoreOptions

    faces = ("faces", "min_face", "rotations", "upscale", "blend", "aligned")
    same = ("confidence", "ext", "suffix", "quality", "only_faces", "copy_faceless")
    more = ("fixed_bucket", "max_identity_angle")
    return Plan(
        options=RestoreOptions(**{name: given[name] for name in faces}),
        limits=Limits(max_pixels=given["max_pixels"]),
        **{name: given[name] for name in (*same, *more)},
    )
