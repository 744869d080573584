"""A connection to Ray: to a cluster that is there, or to one that lives as long as this run."""

import functools
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fr_deploy.batch.ray_choice import RayChoice
from fr_deploy.batch.ray_fleet import RayFleet
from fr_deploy.batch.ray_probe import check_reachable
from fr_deploy.errors import FrDeployError, ResourceError

_STORE_BYTES = 80 * 2**20
"""Little above the least that Ray takes: records travel, and no pictures."""
_LOOPBACK = "127.0.0.2"
"""Ray puts the machine's own address in the place of 127.0.0.1; that one may change, or not be reachable by itself."""
_PREFIX = "fr-ray-"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ray_fleet(choice: RayChoice, device: str) -> Generator[RayFleet]:
    """Connect for the time of a block; what was started ends with it.

    Args:
        choice: which cluster.
        device: `auto`, `cuda`, `cpu`, or a fake one.

    Raises:
        ResourceError: no connection, or the cluster cannot hold one actor.
    """
    folder = _begin_folder() if choice.local else None
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled" if choice.insecure else "token"
    if folder:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
        os.environ.pop("RAY_AUTH_TOKEN", None)
    try:
        if folder is None:
            check_reachable(choice)
        import ray

        try:
            _connect(ray, choice, folder, device)
            yield RayFleet(ray, device)
        finally:
            ray.shutdown()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, choice: RayChoice, folder: Path | None, device: str) -> None:
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if folder is None:
        how["address"] = choice.address
    else:
        how |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_temp_dir": str(
                folder / "r"
            ),  # not the folder itself: Ray opens this one to all users
            "_node_ip_address": _LOOPBACK,
        }
        if device not in ("auto", "cuda"):
            how["num_gpus"] = 0
    try:
        with _signals_kept():
            ray.init(**how)
    except FrDeployError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise ResourceError(f"--ray {choice.address}: Ray does not begin: {text[:500]}") from error


@contextmanager
def _signals_kept() -> Generator[None]:
    """The run's signals stay its own: Ray would take SIGTERM, and its processes are of our process group.

    They inherit the mask, so that a signal to the group does not end them while the run brings what is in flight to
    its end.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin_folder() -> Path:
    """Ray's temporary folder, with the token of a local cluster in a file that only this user can read.

    Raises:
        ResourceError: it cannot be written.
    """
    _clear_left()
    try:
        # Names of sockets have 107 bytes at most, and Ray's own part of them takes 70.
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        fd = os.open(folder / "token", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(_token())
    except OSError as error:
        raise ResourceError(f"cannot write to {tempfile.gettempdir()}: {error}") from error
    return folder


@functools.cache
def _token() -> str:
    """One for all local clusters of this process: Ray reads it once."""
    return secrets.token_hex(32)


def _clear_left() -> None:
    """Remove the folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        found = re.match(rf"{_PREFIX}(\d+)-", folder.name)
        if found and not Path("/proc", found[1]).exists():
            with suppress(OSError):
                if folder.lstat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
