"""A run put together: processes by the machine, bounded memory, the real model, reports of real photos."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from batch_cli import (
    FAKE,
    Group,
    batch,
    check_standing,
    document,
    fast,
    ledger_lines,
    make_photos,
    members,
    records,
    wait_until,
)
from fr_deploy.batch.ask import Ask, anchored, read_ask, write_ask
from fr_deploy.batch.compact import CompactSet
from fr_deploy.batch.modelfiles import model_digests
from fr_deploy.batch.opening import shell_word
from fr_deploy.batch.run import pace_of
from fr_deploy.errors import ModelError, UsageError

__all__ = ["fast"]  # a fixture

DEMO = Path(__file__).parents[1] / "assets" / "demo"
ITEMS = 11_000


def ask(**more) -> Ask:
    return Ask(**{"sources": ("in",), "devices": ("cpu",)} | more)


def test_processes_are_those_of_the_machine_unless_said(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    pace = pace_of(ask(), tmp_path, tmp_path)
    assert (pace.preparers, pace.finishers, pace.batch) == (16, 8, 16)
    assert pace.in_flight >= 2 * pace.batch
    pace = pace_of(ask(preparers=3, finishers=2, batch=4, devices=("a", "b")), tmp_path, tmp_path)
    assert (pace.preparers, pace.finishers, pace.batch, pace.in_flight) == (3, 2, 4, 26)


def test_what_was_asked_for_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    given = anchored(ask(sources=("in", "s3://b/k", "caf\udce9"), engines="engines", sidecar=True))
    assert given.sources == (str(tmp_path / "in"), "s3://b/k", "caf\udce9")
    assert given.engines == str(tmp_path / "engines")
    write_ask(tmp_path, given)
    assert read_ask(tmp_path) == given
    with pytest.raises(UsageError, match="holds no run"):
        read_ask(tmp_path / "in")
    (tmp_path / "ask.json").write_text("{}")
    with pytest.raises(ModelError, match="ask"):
        read_ask(tmp_path)


def digests(**more) -> dict:
    return model_digests(ask(**more).model_options())


def test_a_model_is_known_by_its_files(tmp_path, monkeypatch):
    first = digests()
    with monkeypatch.context() as patch:
        patch.setattr("fr_deploy.batch.modelfiles._VERSION", {"fr_deploy": "0.0.9"})
        assert first != digests()
        fakes = {"devices": ("fake:1ms+1ms",)}
        older = digests(**fakes)
    assert digests(**fakes) != older
    assert first == digests(devices=("cuda:3",))
    assert first != digests(dtype="fp16")
    folder = tmp_path / "bundle"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a.safetensors").write_bytes(b"1")
    own = digests(model=str(folder))
    assert own["bundle"] != first["bundle"]
    (folder / "unet" / "a.safetensors").write_bytes(b"2")
    assert digests(model=str(folder)) != own
    lora = tmp_path / "lora:1.safetensors"
    lora.write_bytes(b"x")
    halves = digests(loras=(f"{lora}:0.5",))["loras"]
    assert halves[0]["scale"] == "0.5"
    assert digests(loras=(str(lora),))["loras"] == [halves[0] | {"scale": ""}]
    with pytest.raises(ModelError, match="no such file"):
        digests(loras=("nowhere:0.5",))
    with pytest.raises(ModelError, match="was not exported"):
        digests(engines=str(folder))


def test_a_compact_set_forgets_nothing():
    many = CompactSet()
    for index in range(25_000):
        many.add(f"name {index}")
    assert all(f"name {index}" in many for index in range(25_000))
    assert not any(f"other {index}" in many for index in range(1000))
    many.add("caf\udce9")
    assert "caf\udce9" in many


def test_words_for_a_shell_are_read_back_by_it():
    for text in ("plain", "with space", "it's", "caf\udce9 \\ 'x' \n", "\u202e-x", "$HOME"):
        script = f"printf %s {shell_word(text)}"
        done = subprocess.run(["bash", "-c", os.fsencode(script)], capture_output=True, check=True)
        assert os.fsdecode(done.stdout) == text


def resident(group: int) -> dict[int, int]:
    """Bytes that each process of a group holds."""
    sizes: dict[int, int] = {}
    for pid in members(group):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    sizes[pid] = int(line.split()[1]) * 1024
    return sizes


def settled(group: int) -> dict[str, int]:
    """The parent and its children together, each at the least of many looks: without what is passing through."""
    looks = []
    for _ in range(40):
        looks.append(resident(group))
        time.sleep(0.02)
    least = {pid: min(look.get(pid, size) for look in looks) for pid, size in looks[0].items()}
    parent = least.pop(group)
    return {"parent": parent, "children": sum(least.values())}


@pytest.mark.slow
def test_memory_does_not_grow_from_item_1000_to_10000(fast, record_property):
    """Faces one by one: with batches of 16 the device's process has 41 to 113 MB, by how many are in it."""
    source, out = make_photos(fast / "in", ITEMS), fast / "out"
    options = ("--aligned", "--batch", "1", "--device", FAKE, "--progress", "none")
    with Group(source, out, *options) as run:
        at = {}
        for count in (1000, 10_000):
            wait_until(lambda n=count: ledger_lines(out) >= n, f"{count} records", 400)
            at[count] = settled(run.process.pid)
        code, _, errors = run.ended()
    assert code == 0, errors
    record_property("figure", f"memory at item 1,000 and 10,000, bytes: {at}")
    for name in ("parent", "children"):
        assert at[10_000][name] < 1.05 * at[1000][name], name


@pytest.mark.slow
def test_the_real_model_on_the_demo_photos(tmp_path, record_property):
    source, out, report = DEMO, tmp_path / "out", tmp_path / "report.html"
    done = batch(
        source, out, "--ext", "png", "--report", report, "--json", "--progress", "json",
        "--max-identity-angle", "30", "--device", "cpu", timeout=280,
    )  # fmt: skip
    value = document(done)
    assert done.returncode == 0, done.stderr
    found = check_standing(out)
    assert value["counts"]["restored"] >= 3
    faces = [face for record in found for face in record.faces]
    assert len(faces) >= 3
    assert all(0 <= face["angle"] < 90 for face in faces)
    assert all(face["angle_kept"] <= 30 or face["blend"] == 0 for face in faces)
    for record in records(out):
        if record.status == "restored":
            with Image.open(out / record.outputs[0].path) as after:
                assert after.format == "PNG"
    text = report.read_text()
    assert text.count("<article") == sum(record.status == "restored" for record in found)
    assert "degrees" in text
    record_property(
        "figure", f"{value['images_per_s']} photos/s with lafr-mini, busy {value['busy']}"
    )
