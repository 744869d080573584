"""`fr-deploy serve-batch` from the outside: options, exit codes, streams, resuming."""

import functools
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from batch_cli import (
    FAKE,
    Group,
    batch,
    check_standing,
    document,
    fast,
    ledger_lines,
    make_photos,
    records,
    restore_aligned,
    results,
    small_photo,
    state_of,
    wait_until,
)
from fr_deploy.cli import main

__all__ = ["fast"]  # a fixture


def usage(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["serve-batch", *arguments])
    assert done.exit_code == 2
    return done.stderr


def test_the_parent_imports_nothing_heavy() -> None:
    """A million photos are moved by a process that holds neither torch nor OpenCV."""
    script = (
        "import sys, fr_deploy.batch.run, fr_deploy.cli.serve_batch, fr_deploy.cli.serve_batch_output\n"
        "print(sorted({'torch', 'cv2', 'onnxruntime', 'diffusers', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_addresses_are_fetched_when_allowed(fast: Path) -> None:
    source = make_photos(fast / "in", 2)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(source))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = "000/photo 00001.png"
        url = f"http://127.0.0.1:{server.server_port}/{quote(name)}"
        assert restore_aligned(url, fast / "no").returncode == 4
        private = restore_aligned(url, fast / "private", "--allow-http")
        assert private.returncode == 4, private.stderr
        assert [record.reason for record in records(fast / "private")] == ["private_address"]
        done = restore_aligned(url, fast / "out", "--allow-http", "--allow-private")
        assert done.returncode == 0, done.stderr
        server.shutdown()
    assert restore_aligned(source, fast / "same").returncode == 0
    assert list(results(fast / "out").values()) == [results(fast / "same")[name]]


def test_what_is_no_subcommand_is_a_source(fast: Path) -> None:
    source = make_photos(fast / "status", 2)
    done = restore_aligned(source, fast / "out")
    assert done.returncode == 0, done.stderr
    assert len(results(fast / "out")) == 2
    assert "name SRC... and DST" in usage("only-one")
    assert "name SRC... and DST" in usage()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--shard", "2/2"], "allowed are 0/N to N-1/N"),
        (["--shard", "x"], "allowed are 0/N to N-1/N"),
        (["--devices", "cpu,"], "names an empty device"),
        (["--devices", "cpu", "--device", "cpu"], "leave one of them out"),
        (["--trust", "KEY.pub"], "together with --engines"),
        (["--progress", "fast"], "is not one of"),
        (["--preparers", "0"], "0 is not in the range"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--device", "fake:fast"], "fake:BASEms+PER_FACEms"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "a.png").write_bytes(small_photo(0))
    assert text in usage(str(tmp_path / "a.png"), str(tmp_path / "out"), *arguments)


def test_json_and_progress_keep_to_their_streams(fast: Path) -> None:
    source = make_photos(fast / "in", 3)
    (source / "bad.png").write_bytes(b"nothing")
    done = restore_aligned(source, fast / "out", "--json", "--progress", "json")
    value = document(done)
    assert done.returncode == value["exit_code"] == 3
    assert (value["total"], value["done"], value["new"]) == (4, 4, 4)
    assert value["counts"] == {"restored": 3, "failed": 1}
    assert value["failures"]["not_an_image"]["count"] == 1
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines[-1]["done"] == 4
    assert "bad.png" in done.stderr


def test_nothing_to_do_is_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = restore_aligned(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 4
    assert "empty_folder" in done.stderr
    assert "no photo found" in done.stderr


def test_only_bad_photos_are_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    done = restore_aligned(tmp_path / "a.png", tmp_path / "out")
    assert done.returncode == 4
    assert "no usable photo" in done.stdout


def test_a_dry_run_writes_nothing(fast: Path) -> None:
    source = make_photos(fast / "in", 3)
    done = restore_aligned(source, fast / "out", "--dry-run")
    assert done.returncode == 0
    assert "3 photos would be restored" in done.stdout
    assert not (fast / "out").exists()
    (source / "000" / "photo 00000.jpg").write_bytes(small_photo(1, kind="JPEG"))
    done = restore_aligned(source, fast / "out", "--dry-run", "--ext", "png")
    assert done.returncode == 2
    assert "photo 00000" in done.stderr


def test_resume_refuses_what_would_make_other_bytes(fast: Path) -> None:
    source, out = make_photos(fast / "in", 3), fast / "out"
    assert restore_aligned(source, out).returncode == 0

    def refused(*arguments: object) -> str:
        done = CliRunner().invoke(main, ["serve-batch", *map(str, arguments)])
        assert done.exit_code == 5, done.stderr
        return done.stderr

    same = (source, out, "--aligned", "--device", FAKE)
    for more in (["--quality", "80"], ["--ext", "jpg"], ["--sidecar"], ["--sink", "tar"]):
        assert "--force-mixed" in refused(*same, *more)
    assert "its list is frozen" in refused(make_photos(fast / "other", 1), *same[1:])
    assert "model" in refused("resume", out, "--device", "cpu")
    done = restore_aligned(source, out, "--quality", "80", "--force-mixed")
    assert done.returncode == 0
    run = json.loads((state_of(out) / "run.json").read_text())
    assert run["mixed"][0]["fields"] == {"plan.quality": [95, 80]}


def test_resume_needs_no_sources_and_no_working_directory(fast: Path) -> None:
    make_photos(fast / "in", 4)
    out = fast / "out"
    done = batch("in", "out", "--aligned", "--device", FAKE, "--progress", "none", cwd=fast)
    assert done.returncode == 0, done.stderr
    victim = out / "000" / "photo 00002.png"
    expected = victim.read_bytes()
    victim.write_bytes(expected[:-1])
    assert batch("verify", out).returncode == 3
    done = batch("verify", out, "--repair")
    assert "1 will be made again" in done.stdout
    done = batch("resume", out, "--progress", "none", cwd="/")
    assert done.returncode == 0, done.stderr
    assert victim.read_bytes() == expected
    assert batch("verify", out).returncode == 0


def test_watching_looks_into_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(small_photo(0))
    given = [str(tmp_path / "out"), "--device", FAKE, "--watch"]
    assert "looks into folders" in usage(str(tmp_path / "a.png"), *given)
    more = ["--shard", "0/2", "--sink", "tar"]
    assert "use --sink tree" in usage(str(tmp_path), *given, *more)


def test_a_destination_whose_name_is_no_text(fast: Path) -> None:
    source, out = make_photos(fast / "in", 2), fast / "caf\udce9\n"
    done = restore_aligned(source, out, "--report", out / "report.html")
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9\\n" in done.stdout
    (out / "000" / "photo 00001.png").unlink()
    assert "$'" in batch("verify", out).stdout


def test_shards_are_merged_and_reported(fast: Path) -> None:
    source, out = make_photos(fast / "in", 30), fast / "out"
    for shard in (0, 1, 2):
        report = fast / f"{shard}.html"
        done = restore_aligned(source, out, "--shard", f"{shard}/3", "--report", report)
        assert done.returncode == 0, done.stderr
    assert "30 photos merged" in batch("merge", out).stdout
    assert len(check_standing(out)) == 30
    page = fast / "all.html"
    assert batch("report", out, "-o", page).returncode == 0
    assert page.read_text().count("<article") == 30
    (out / "000" / "photo 00003.png").unlink()
    assert batch("verify", out, "--repair").returncode == 3
    assert batch("resume", out, "--progress", "none").returncode == 0
    assert batch("verify", out).returncode == 0


def test_sidecars_say_what_the_ledger_says(fast: Path) -> None:
    source, out = make_photos(fast / "in", 2), fast / "out"
    assert restore_aligned(source, out, "--sidecar").returncode == 0
    for record in records(out):
        image, side = record.outputs
        assert side.path == image.path + ".json"
        value = json.loads((out / side.path).read_text())
        assert value["in_sha256"] == record.in_sha256
        assert value["outputs"] == [vars(image)]
        assert not {"ms", "at", "host"} & value.keys()


def test_what_is_changed_or_gone_after_listing_is_said(fast: Path) -> None:
    source, out = make_photos(fast / "in", 30), fast / "out"
    arguments = (source, out, "--aligned", "--device", "fake:300ms", "--batch", 1)
    with Group(*arguments, "--progress", "none") as run:
        wait_until(lambda: ledger_lines(out) > 0, "a first record")
        (source / "000" / "photo 00028.png").write_bytes(small_photo(999, side=33))
        (source / "000" / "photo 00029.png").unlink()
        code, text, _ = run.ended()
    assert code == 3
    reasons = {record.name[-9:-4]: record.reason for record in records(out) if record.reason}
    assert reasons == {"00028": "changed", "00029": "vanished"}
    assert "failed: 1 x changed" in text
    assert "failed: 1 x vanished" in text
