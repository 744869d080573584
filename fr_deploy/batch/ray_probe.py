"""Whether a Ray cluster can be reached, found out in a process that can be ended: Ray itself tries for minutes."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from socket import create_connection

from fr_deploy.batch.ray_choice import RayChoice
from fr_deploy.errors import ResourceError

_ANSWER_SECONDS = 4.0
_PROBE_SECONDS = 30.0
"""For an address that answered; it takes 1 s, and more while the machine is busy."""
_AUTO_SECONDS = 10.0
# What a client of HTTP/2 says first: the preface, and no settings. A server answers with its own.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


def check_reachable(choice: RayChoice) -> None:
    """See that a cluster answers at its address, and takes our token.

    Raises:
        ResourceError: it does not; found out within 10 s, of an address that answers otherwise within 30.
    """
    if choice.host_port is not None:
        _check_answer(choice)
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "fr_deploy.batch.ray_probe", choice.address]
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            text = _wait(process, Path(f"/proc/self/fd/{said.fileno()}"), choice)
        finally:
            process.kill()
            process.wait()
    if text:
        raise ResourceError(f"--ray {choice.address}: {text}")


def _check_answer(choice: RayChoice) -> None:
    """A first word with the head, which needs neither Ray nor a token."""
    assert choice.host_port is not None
    try:
        with closing(create_connection(choice.host_port, _ANSWER_SECONDS)) as sock:
            sock.sendall(_HELLO)
            answer = sock.recv(9)
    except OSError as error:
        text = f"nothing answers ({error}); begin a cluster with: ray start --head"
        raise ResourceError(f"--ray {choice.address}: {text}") from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ResourceError(f"--ray {choice.address}: what answers there is no head of Ray")


def _wait(process: "subprocess.Popen[bytes]", said: Path, choice: RayChoice) -> str:
    """What is wrong; empty: nothing."""
    limit = _AUTO_SECONDS if choice.host_port is None else _PROBE_SECONDS
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end:
        if b"Unauthenticated" in said.read_bytes():
            return (
                "the cluster does not take this token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to its own, "
                "as `ray start` had it"
            )
        time.sleep(0.05)
    if process.returncode == 0:
        return ""
    lines = said.read_text(errors="replace").strip().splitlines() or ["no reason was given"]
    if process.returncode is None:
        return (
            f"no connection within {limit:g} s; is this machine a node of the cluster? {lines[-1]}"
        )
    return lines[-1]


def main() -> None:
    """Connect, and end."""
    import ray

    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
        ray.nodes()
    except Exception as error:
        text = " ".join(str(error).split())
        print(f"{type(error).__name__}: {text[:500]}", flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
