"""From what was asked for to a run whose list is on the disk: begun now, or gone on with."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

from fr_deploy.batch.ask import Ask, check_sources, read_ask, write_ask
from fr_deploy.batch.collisions import check_collisions
from fr_deploy.batch.folder import make_part_folder, state_folder
from fr_deploy.batch.itemlist import read_items
from fr_deploy.batch.listing import Listing, list_items
from fr_deploy.batch.modelfiles import model_digests
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.ray_choice import RayChoice
from fr_deploy.batch.sidecar import SUFFIX
from fr_deploy.batch.state import State
from fr_deploy.display import printable
from fr_deploy.errors import NoInputError
from fr_deploy.inputs import Refusal

_SPARE_FACE = len("-face9999")
_TOLD = 10

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What one start of a run was given."""

    ask: Ask
    plan: Plan
    destination: Path
    folder: Path
    """Of the state."""
    shard: tuple[int, int] | None = None
    """(i, n), i from 0."""
    force_mixed: bool = False
    ray: RayChoice | None = None
    """None: by processes of this machine."""


def folder_of(destination: Path, state: Path | None, shard: tuple[int, int] | None) -> Path:
    """Where the state of a run lies."""
    return state if state is not None else state_folder(destination, shard)


def spare_of(start: Start) -> int:
    """Bytes that the names of outputs leave free for what is put behind them."""
    return start.plan.only_faces * _SPARE_FACE + start.ask.sidecar * len(SUFFIX)


def listing_of(start: Start) -> Listing:
    """The items of a run's sources, found anew each time it is gone through.

    Raises:
        UsageError: as `list_items`.
    """
    ask, plan = start.ask, start.plan
    return list_items(
        ask.sources,
        outside=[start.destination, start.folder],
        ext=plan.ext,
        suffix=plan.suffix,
        spare=spare_of(start),
        allow_http=ask.allow_http,
    )


def open_run(start: Start, tell: Tell) -> State:
    """Begin a run, or go on with the one that is there.

    Args:
        start: what was given.
        tell: shows a line.

    Returns:
        Its state, open for writing; the caller closes it.

    Raises:
        NoInputError: the sources hold no photo.
        UsageError: outputs would collide, or another process is at work there.
        ModelError: the run there was begun with another model, other options or sources.
        ResourceError: a folder cannot be written.
    """
    state = State(start.folder)
    try:
        if state.run is None:
            _begin(start, state, tell)
        else:
            _go_on(start, state)
        return state
    except BaseException:
        state.close()
        raise


def refusal_lines(refusals: Iterable[Refusal], count: int) -> Iterable[str]:
    """What was named and holds no photo, the first ten."""
    yield from (refusal_line(refusal) for refusal in list(refusals)[:_TOLD])
    if count > _TOLD:
        yield f"refused: and {count - _TOLD} more"


def refusal_line(refusal: Refusal) -> str:
    """One of them."""
    return f"refused: {printable(refusal.name)}: {refusal.reason}: {printable(refusal.message)}"


def check_only(start: Start, tell: Tell) -> int:
    """Do all that comes before a run, and write nothing; returns how many items there are.

    Raises:
        as `open_run`.
    """
    model_digests(start.ask.model_options())
    listing = listing_of(start)
    count = check_collisions(lambda: listing, _tree(start))
    for line in refusal_lines(listing.notes.refusals, listing.notes.refused):
        tell(line)
    if not count:
        raise NoInputError("no photo found: nothing would be restored")
    return count


def _begin(start: Start, state: State, tell: Tell) -> None:
    ask = start.ask
    model = model_digests(ask.model_options())
    # Before the list is made, which may take long: a folder that cannot be written is known at once.
    make_part_folder(state.folder, start.destination)
    listing = listing_of(start)
    if not ask.watch:
        count = state.write_list(listing, shard=start.shard)
        # Of one shard the whole list counts, whose other items are not in the file.
        frozen = partial(read_items, state.items_path)
        check_collisions((lambda: listing) if start.shard else frozen, _tree(start))
        if ask.sources and not count and not (start.shard and listing_has_items(listing)):
            for line in refusal_lines(listing.notes.refusals, listing.notes.refused):
                tell(line)
            raise NoInputError("no photo found: nothing to restore")
    write_ask(state.folder, ask)
    state.create(
        start.plan,
        model,
        sources=ask.sources,
        destination=start.destination,
        sink=ask.sink_settings(),
        refusals=listing.notes.refusals,
    )


def _go_on(start: Start, state: State) -> None:
    ask = start.ask
    check_sources(state.begun.sources, ask.sources, state.folder)
    state.check_same(
        start.plan,
        model_digests(ask.model_options()),
        sink=ask.sink_settings(),
        force_mixed=start.force_mixed,
    )
    state.check_list()
    if (
        read_ask(state.folder) != ask
    ):  # other devices, or more processes: the next resume's defaults
        write_ask(state.folder, ask)


def listing_has_items(listing: Listing) -> bool:
    """Whether there is any item at all."""
    return next(iter(listing), None) is not None


def _tree(start: Start) -> Path | None:
    return start.destination if start.ask.sink == "tree" else None


def resume_command(start: Start) -> str:
    """The command that goes on with a run, as a shell takes it."""
    words = ["fr-deploy", "serve-batch", "resume", shell_word(os.fspath(start.destination))]
    if start.folder != state_folder(start.destination, start.shard):
        words += ["--state", shell_word(os.fspath(start.folder))]
    elif start.shard:
        words += ["--shard", "{}/{}".format(*start.shard)]
    if start.ray:
        words += ["--ray", quote(start.ray.address)] + ["--insecure-ray"] * start.ray.insecure
    return " ".join(words)


def shell_word(text: str) -> str:
    """A word as bash takes it; bytes that are no text become escapes."""
    if text.isprintable():
        return quote(text)
    escaped = "".join(
        chr(byte) if 32 < byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{escaped}'"
