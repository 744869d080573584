"""What `--ray` asks for, and whether it can be; Ray itself is not imported here."""

import importlib.util
import re
from dataclasses import dataclass

from fr_deploy.batch.ask import Ask
from fr_deploy.batch.modelfiles import FAKE
from fr_deploy.errors import ResourceError, UsageError

LOCAL = "local"
AUTO = "auto"
WATCHDOG_SECONDS = 900.0
"""Longer than a device may take over one batch (600 s) and a model over its loading (300 s)."""


@dataclass(frozen=True)
class RayChoice:
    """Which cluster carries a run out, and how long it may be silent."""

    address: str = LOCAL
    """`local`: one is started for this run; `auto`: the one that this machine is a node of; or HOST:PORT of a head."""
    insecure: bool = False
    """Connect without a token."""
    watchdog_seconds: float = WATCHDOG_SECONDS
    """Without any record, while photos are in flight."""

    @property
    def local(self) -> bool:
        """Whether a cluster is started for this run alone."""
        return self.address == LOCAL

    @property
    def host_port(self) -> tuple[str, int] | None:
        """Of the head, if it was named."""
        host, _, port = self.address.rpartition(":")
        return (host, int(port)) if host else None


def parse_address(text: str) -> str:
    """See that an address is one.

    Args:
        text: `local`, `auto` or HOST:PORT.

    Raises:
        UsageError: it is something else, such as the SRC that follows a bare `--ray`.
    """
    found = re.fullmatch(r"[\w.-]+:(\d{1,5})", text)
    if text in (LOCAL, AUTO) or (found and 0 < int(found[1]) < 65536):
        return text
    if text.startswith("ray://"):
        raise UsageError(
            f"--ray {text}: Ray's client protocol does not reach the disk; run fr-deploy on a node of the cluster, "
            "and give HOST:PORT of its head (6379, if `ray start` was not told another port) or `auto`"
        )
    raise UsageError(
        f"--ray {text!r} is no address; allowed: local, auto, HOST:PORT. "
        "Before SRC write --ray=local for a cluster of this machine alone"
    )


def check_ray(choice: RayChoice, ask: Ask) -> None:
    """See that a run can be given to Ray, before anything is started.

    Raises:
        UsageError: devices that Ray would have to choose itself.
        ResourceError: Ray is not installed.
    """
    if choice.local and choice.insecure:
        raise UsageError("--insecure-ray is for --ray ADDRESS; a local cluster has its own token")
    names = ask.devices
    if len(names) != 1 or not (names[0] in ("auto", "cuda", "cpu") or names[0].startswith(FAKE)):
        raise UsageError(
            f"devices are {', '.join(names)}; with --ray it is one of auto, cuda, cpu or fake:..., "
            "because Ray says which GPU each of its actors has"
        )
    if importlib.util.find_spec("ray") is None:
        raise ResourceError("--ray needs the package ray: pip install 'fr-deploy[ray]'")
