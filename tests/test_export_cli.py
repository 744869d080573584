"""`fr-deploy export` and `fr-deploy verify`: options, refusals, and the whole way with real models."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export_cases import tiny_bundle
from fr_deploy.bundle import load_graph
from fr_deploy.cli import main
from fr_deploy.errors import UsageError
from fr_deploy.manifest import FILE, PARTS, parse_manifest
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_export.engine_options import BatchRange
from fr_export.options import options_of
from fr_export.session import exported_files, run_files
from fr_export.spoken import spoken
from fr_export.verify import photo_faces

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def run(*given: object) -> Result:
    return CliRunner().invoke(main, list(map(str, given)))


def test_ultralytics_manner() -> None:
    assert spoken(["lafr-mini", "format=engine", "half=True", "batch=8"]) == {
        "model": "lafr-mini", "format": "tensorrt-rtx", "precision": "fp16", "batch": "8",
    }  # fmt: skip
    assert spoken(["model=a/b=c", "half=false"]) == {"model": "a/b=c", "precision": "fp32"}
    for words, message in (
        (["int8=True"], "'int8=True' is no option; allowed are model=..., format=..., half=..., "),
        (["half=maybe"], "neither True nor False"),
        (["a", "b"], "model is given twice: 'a' and 'b'"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            spoken(words)


def test_what_is_not_given() -> None:
    graph = options_of("onnx")
    assert (graph.precision, graph.batches, graph.engine) == ("fp32", (BatchRange(1, 8, 16),), None)
    assert graph.names == PARTS
    engine = options_of("tensorrt-rtx", buckets=(1, 4), whole=True).engine
    assert engine is not None
    assert engine.precision == "float16"
    assert engine.batches == (BatchRange(1, 1, 1), BatchRange(4, 4, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "openvino"}, "allowed are onnx, tensorrt, tensorrt-rtx"),
        ({"precision": "int8"}, "allowed are fp32, fp16, bf16"),
        ({"precision": "bf16"}, "take no bfloat16; choose --precision fp32 or fp16, or"),
        ({"batch": "1:4", "format": "onnx"}, "LEAST:BEST:MOST"),
        ({"batch": "1:4:8", "buckets": (1,)}, "--batch or --buckets"),
        ({"buckets": (1,)}, "an ONNX file takes any batch"),
        ({"batch": "1:8:65"}, "at most 64"),
        ({"capabilities": ("8.9",)}, "are of engines"),
        ({"format": "tensorrt-rtx", "capabilities": ("9.0",)}, "allowed are 7.5"),
    ],
)
def test_options_that_contradict(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_of(**{"format": "onnx"} | given)  # pyright: ignore


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["lafr-mini", "imgsz=640"], 2, "'imgsz=640' is no option"),
        (["half=True"], 2, "no model is named"),
        (["lafr-mini", "half=True", "--precision", "fp16"], 2, "precision is given twice"),
        (["lafr-mini", "format=engine", "--buckets", "1,x"], 2, "allowed are numbers with commas"),
        (["lafr-mini", "format=keras"], 2, "format is 'keras'"),
        (["nowhere"], 5, "no bundle 'nowhere'"),
    ],
)
def test_refusals(given: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = run("export", *given, "-o", tmp_path / "out")
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "out" / FILE).exists()


def test_a_folder_without_an_export(tmp_path: Path) -> None:
    done = run("verify", tmp_path)
    assert done.exit_code == 5
    assert "holds neither encoder, adapter, unet, decoder nor whole as .onnx" in done.stderr


def test_faces_of_photos_have_the_size_asked_for() -> None:
    assert photo_faces(DEMO, 64).shape == (5, 64, 64, 3)


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    given = ["export", bundle, "-o", tmp_path / "out", "--dry-run", "--whole"]
    done = run(*given)
    assert re.fullmatch(r"whole\.onnx: 0\.\d MB of weights, \d+ nodes\n", done.stdout)
    done = run(*given, "format=engine", "--buckets", "1,8")
    assert re.match(r"whole\.engine: .* an engine of about \d+ MB, .* up to 0\.5 GB", done.stdout)
    monkeypatch.setattr("fr_export.engine_estimate.free_memory", lambda: 1000)
    done = run(*given, "format=engine")
    assert (done.exit_code, "does not fit" in done.stderr) == (6, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_engines_of_lafr_mini(
    precision: str, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    out = tmp_path / "mini"
    done = run("export", "lafr-mini", "-o", out, "format=engine", "--precision", precision)
    assert done.exit_code == 0, done.output
    with_seconds = r"{}\.engine  \d+\.\d MB, .*; \d+\.\d s, up to \d\.\d\d GB of memory"
    for name in PARTS:
        found = re.search(with_seconds.format(name), done.stdout)
        assert found, done.stdout
        record_property("figure", found[0])
    manifest = parse_manifest((out / FILE).read_bytes())
    assert (manifest.verified, manifest.precision) == ("onnx only", precision)
    assert (manifest.batches[0].least, manifest.batches[0].most) == (1, 8)
    halves = {component.name: component.half for component in manifest.components}
    assert halves["adapter"] > 0.7, "the codebook's distances are float32"
    assert all(halves[name] > 0.95 for name in ("encoder", "unet", "decoder"))
    assert (
        manifest.component("unet").inputs[0].dtype
        == {"fp16": "float16", "bf16": "bfloat16"}[precision]
    )
    if precision == "bf16":
        verified = run("verify", out, "--bisect")
        assert verified.exit_code == 0
        assert "no tensor departs" in verified.stdout
    refused = run("restore", DEMO, "-o", tmp_path / "restored", "--engines", out)
    assert refused.exit_code in (5, 6)
    assert "engines" in refused.stderr


@pytest.mark.slow
def test_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    bundle, out = tiny_bundle(tmp_path / "bundle"), tmp_path / "out"
    options = ("format=engine", "half=True", "--whole", "--compute-capability", "8.9")
    given = ["export", bundle, "-o", out, *options]
    done = run(*given)
    assert done.exit_code == 0, done.output
    size = (out / "whole.engine").stat().st_size / 1e6
    assert f"whole.engine  {size:.1f} MB, tensorrt-rtx 1." in done.stdout
    assert "compute capability 8.9;" in done.stdout
    assert "whole.engine: Building engine" in done.stderr
    manifest = parse_manifest((out / FILE).read_bytes())
    assert (manifest.verified, manifest.precision) == ("onnx only", "fp16")
    assert [f.role for f in manifest.components[0].files] == ["onnx", "engine"]
    again = run(*given)
    assert "whole.onnx  was finished\n" in again.stdout
    assert "whole.engine  was finished\n" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "least", "agree_least"), [("fp32", 60, 0.999), ("fp16", 40, 0.99)]
)
def test_lafr_mini(
    tmp_path: Path,
    precision: str,
    least: float,
    agree_least: float,
    record_property: Callable[[str, str], None],
) -> None:
    out = tmp_path / "mini"
    done = run("export", "lafr-mini", "-o", out, "--precision", precision, "--photos", DEMO)
    assert done.exit_code == 0, done.output
    parity = parse_manifest((out / FILE).read_bytes()).parity
    assert parity.faces == 8
    assert parity.psnr_forced is None or parity.psnr_forced >= least
    assert parity.codes >= agree_least
    verified = run("verify", out, "--photos", DEMO)
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.count("as this version writes it, byte by byte") == 4
    graph = load_graph("lafr-mini")
    for batch in (1, 3, 8):
        faces = random_pictures(512, batch)
        made = run_files(exported_files(out), faces)
        forced = graph.to_bytes(graph.stages(faces, made["codes"]).picture)
        found = agree(made["restored"], forced)
        assert found.psnr >= least
        record_property("figure", f"lafr-mini {precision}, batch {batch}, codes forced: {found}")
