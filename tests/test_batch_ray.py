"""`--ray` before Ray begins: what is refused, and how soon."""

import socket
import threading
import time
from pathlib import Path

import pytest

from batch_cli import ANSWER_S, FAKE, batch, make_photos
from fr_deploy.batch.ask import Ask
from fr_deploy.batch.ray_choice import RayChoice, check_ray, parse_address
from fr_deploy.errors import UsageError


@pytest.mark.parametrize(
    "text", ["in/", "photos", "ray://head:10001", "head:0", "head:70000", ":6379"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--ray"):
        parse_address(text)
    assert parse_address("head-1.lan:6379") == "head-1.lan:6379"


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cuda:1"), (FAKE, FAKE)])
def test_devices_that_ray_has_to_choose_are_refused(devices: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="with --ray it is one of"):
        check_ray(RayChoice(), Ask((), devices))


def refused(tmp_path: Path, *more: object) -> str:
    """What a run says that is to be refused with exit code 6 within ten seconds."""
    source = make_photos(tmp_path / "in", 1)
    began = time.monotonic()
    done = batch(source, tmp_path / "out", "--aligned", "--device", FAKE, *more)
    assert done.returncode == 6, done.stderr
    assert time.monotonic() - began < ANSWER_S
    assert not (tmp_path / "out").exists(), "something was written"
    return done.stderr


def test_an_address_where_nothing_answers_is_refused_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "nothing answers" in refused(tmp_path, "--ray", f"127.0.0.1:{port}")
    assert "nothing answers" in refused(tmp_path, "--ray", f"127.0.0.1:{port}")


def test_an_address_of_something_else_is_refused_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        text = refused(tmp_path, "--ray", f"127.0.0.1:{server.getsockname()[1]}")
    assert "no head of Ray" in text


def test_a_bare_ray_before_src_is_explained(tmp_path: Path) -> None:
    done = batch("--ray", make_photos(tmp_path / "in", 1), tmp_path / "out")
    assert done.returncode == 2
    assert "--ray=local" in done.stderr or "name SRC" in done.stderr
