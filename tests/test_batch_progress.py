"""What a run shows while it goes on, in each of its ways."""

import io
import json
import time
from dataclasses import replace

import pytest

from fr_deploy.batch import progress as module
from fr_deploy.batch.progress import Meter, Mode, Progress, Snapshot, line, span

NOW = Snapshot(
    seconds=12.0,
    total=200,
    done=50,
    failed=2,
    in_flight=16,
    images_per_s=10.0,
    faces_per_s=14.5,
    eta_s=15.0,
    batch_fill=0.875,
    device_busy=0.93,
    bottleneck="restore",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(mode: Mode, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, until: str) -> str:
    """What `mode` wrote, once it had written `until` or after 10 s."""
    monkeypatch.setattr(module, "_PERIOD", {"bar": 0.01, "lines": 0.01, "json": 0.01})
    with Progress(mode, lambda: NOW, stream):
        end = time.monotonic() + 10
        while until not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    return stream.getvalue()


def test_a_line_names_all_that_is_known() -> None:
    assert line(NOW) == (
        "50/200, 2 failed, 10.0 images/s, 14.5 faces/s, 15 s left, batches 88% full, "
        "device 93% busy, waiting for restore"
    )
    empty = replace(NOW, total=None, failed=0, eta_s=None, batch_fill=None, device_busy=None)
    assert line(replace(empty, bottleneck="")) == "50, 10.0 images/s, 14.5 faces/s"


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown("auto", io.StringIO(), monkeypatch, until="restore\n")
    assert set(text.splitlines()) == {line(NOW)}


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    text = shown("auto", Terminal(), monkeypatch, until="batches")
    assert "50/200" in text
    assert "\x1b[" in text


def test_json_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown("json", io.StringIO(), monkeypatch, until="}\n")
    values = [json.loads(one) for one in text.splitlines()]
    assert len(values) >= 2  # the last state is told once more at the end
    assert values[-1]["done"] == 50
    assert values[-1]["batch_fill"] == 0.875
    assert values[-1].keys() == vars(NOW).keys() | {"at"}


def test_none_is_silent() -> None:
    stream = io.StringIO()
    with Progress("none", lambda: pytest.fail("nobody looks"), stream):
        pass
    assert stream.getvalue() == ""


def test_speed_is_of_the_last_half_minute() -> None:
    meter = Meter(window=30)
    assert meter.rates(0, 0, 0) == (0, 0)
    for second in range(1, 1001):  # 100 a second at first, then 2
        done = 100 * min(second, 500) + 2 * max(0, second - 500)
        rates = meter.rates(second, done, 3 * done)
    assert rates == (2, 6)
    assert len(meter._samples) <= 33  # pyright: ignore[reportPrivateUsage]


def test_times() -> None:
    assert span(0.04) == "0.0 s"
    assert span(59) == "59 s"
    assert span(185) == "3:05 min"
    assert span(3723) == "1:02:03 h"
