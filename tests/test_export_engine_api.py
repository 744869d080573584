"""The one builder against the interfaces of TensorRT 10, 11 and TensorRT-RTX: every name it uses, and its ways."""

import ast
import hashlib
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fr_export import engine_calls
from fr_export.engine import half_of_layers
from fr_export.engine_calls import Job, RefusedError, UnreadableError, build
from tensorrt_stand_in import INFORMATION, PLAN, VERSIONS, StandIn, listing

RTX = next(version for version in VERSIONS if "rtx" in version)
FULL = [version for version in VERSIONS if version != RTX]


def job(version: str, **changes: Any) -> Job:
    module = version.partition("-")[0]
    values: dict[str, Any] = {
        "module": module,
        "onnx": "model.onnx",
        "operators": ("Conv", "Unique"),
        "batches": ((1, 4, 8), (16, 16, 16)),
        "capabilities": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1") if version == RTX else (),
        "workspace": 1 << 30,
        "timing_cache": None,
        "gpu": "GPU-sm90",
        "inspect": version != RTX,
    }
    return Job(**values | changes)


def run(stand_in: StandIn, asked: Job) -> tuple[dict[str, Any], list[dict[str, Any]], bytes]:
    events: list[dict[str, Any]] = []
    plan = io.BytesIO()
    return build(stand_in, asked, events.append, plan), events, plan.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build(version: str, tmp_path: Path) -> None:
    trt = StandIn(version, log=[("ERROR", "hm"), ("INFO", "never mind")])
    cache = None if version == RTX else str(tmp_path)
    built, events, plan = run(trt, job(version, timing_cache=cache))
    assert plan == PLAN
    assert (built["bytes"], built["layers"]) == (len(PLAN), 2)
    assert built["sha256"] == hashlib.sha256(PLAN).hexdigest()
    assert [event["event"] for event in events] == ["start", "log", "step", "finish"]
    assert events[1] == {"event": "log", "severity": "ERROR", "text": "hm"}
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.made("Builder").calls[0] == ("create_network", (typed,))
    assert trt.made("IAttention").values == {"decomposable": True}
    config = trt.made("IBuilderConfig")
    assert ("set_memory_pool_limit", (trt.MemoryPoolType.WORKSPACE, 1 << 30)) in config.calls
    profiles = [thing for thing in trt.objects if type(thing).__name__ == "IOptimizationProfile"]
    assert [profile.calls for profile in profiles] == [
        [("set_shape", ("x", (1, 4, 64, 64), (4, 4, 64, 64), (8, 4, 64, 64)))],
        [("set_shape", ("x", (16, 4, 64, 64), (16, 4, 64, 64), (16, 4, 64, 64)))],
    ]
    if version == RTX:
        set_ = [given[0].name for name, given in config.calls if name == "set_compute_capability"]
        assert set_ == ["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
        assert config.values["num_compute_capabilities"] == 6
        assert built["information"] is None
    else:
        assert half_of_layers(built["information"]) == 1 / len(INFORMATION["Layers"])
        (times,) = tmp_path.iterdir()
        assert times.name == f"{version.rpartition('-')[2]}-GPU-sm90.timing"
        assert times.read_bytes() == b"times"


@pytest.mark.parametrize("version", FULL)
@pytest.mark.parametrize("fits", [True, False])
def test_times_of_earlier_builds(version: str, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / f"{version.rpartition('-')[2]}-GPU-sm90.timing"
    path.write_bytes(b"of before")
    trt = StandIn(version, cache_fits=fits)
    _, events, _ = run(trt, job(version, timing_cache=str(tmp_path)))
    config = trt.made("IBuilderConfig")
    given = [given for name, given in config.calls if name == "create_timing_cache"]
    assert given == ([(b"of before",)] if fits else [(b"of before",), (b"",)])
    warned = [event for event in events if event["event"] == "log"]
    assert bool(warned) is not fits
    assert path.read_bytes() == b"times"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_graph_that_cannot_be_read_is_named_by_its_node(version: str) -> None:
    error = {"node": 7, "node_name": "n7", "node_operator": "Unique", "desc": "no importer"}
    trt = StandIn(version, parsed=False, errors=[error], unsupported=["Unique"])
    with pytest.raises(UnreadableError) as caught:
        run(trt, job(version))
    assert str(caught.value) == "node 7 'n7' (Unique): no importer\nit has no operator Unique"


@pytest.mark.parametrize("version", VERSIONS)
def test_no_plan_is_an_error(version: str) -> None:
    plan = io.BytesIO()
    with pytest.raises(RefusedError, match="the build failed"):
        build(StandIn(version, plan=None), job(version), lambda event: None, plan)
    assert plan.getvalue() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_graph_of_a_fixed_batch_needs_no_profile(version: str) -> None:
    trt = StandIn(version, inputs=[("x", (4, 4, 64, 64))])
    run(trt, job(version))
    assert not [thing for thing in trt.objects if type(thing).__name__ == "IOptimizationProfile"]


def names_in_the_builder() -> set[str]:
    """Every attribute's name in engine_calls.py that no type of Python's or of ours has."""
    tree = ast.parse(Path(engine_calls.__file__).read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not called & {"getattr", "setattr", "hasattr", "eval", "vars"}, (
        "a name no test could see"
    )
    python = (str, bytes, list, dict, memoryview, Path, io.BytesIO, hashlib, hashlib.sha256())
    known = {name for kind in python for name in dir(kind)} | {field.name for field in fields(Job)}
    return names - known


def test_every_name_the_builder_uses_was_met_above(tmp_path: Path) -> None:
    """So a name that a version lacks fails a run above, and one that no run meets fails here."""
    used: set[tuple[str, str]] = set()
    for version in VERSIONS:
        cache = None if version == RTX else str(tmp_path)
        error = {"node": 7, "node_name": "n7", "node_operator": "Unique", "desc": "no importer"}
        good = StandIn(version, log=[("ERROR", "hm")])
        bad = StandIn(version, parsed=False, errors=[error])
        run(good, job(version, timing_cache=cache))
        with pytest.raises(UnreadableError):
            run(bad, job(version))
        used |= good.used | bad.used
    met = {part for pair in used for name in pair for part in name.split(".")}
    names = names_in_the_builder()
    assert len(names) > 30
    assert names - met - {"__class__", "__version__"} == set()


def test_the_stand_in_knows_no_more_than_its_listing() -> None:
    eleven, ten = (StandIn(version) for version in sorted(FULL, reverse=True))
    assert (eleven.__version__, ten.__version__) == ("11.4.0.106", "10.16.1.11")
    builder = eleven.Builder(eleven.ILogger())
    with pytest.raises(AttributeError, match=r"Builder\.platform_has_fast_fp16"):
        _ = builder.platform_has_fast_fp16
    with pytest.raises(AttributeError, match=r"IBuilderConfig\.max_workspace_size"):
        builder.create_builder_config().max_workspace_size = 1
    with pytest.raises(AttributeError, match="no ComputeCapability"):
        _ = ten.ComputeCapability
    with pytest.raises(AttributeError, match="EXPLICIT_BATCH"):
        _ = eleven.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert ten.NetworkDefinitionCreationFlag.EXPLICIT_BATCH.name == "EXPLICIT_BATCH"
    with pytest.raises(TypeError):
        builder.create_network(1, 2)


def test_the_listing_of_tensorrt_rtx_is_that_of_the_package() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    if trt.__version__ != RTX.rpartition("-")[2]:
        pytest.skip(f"the listing is of {RTX}, and {trt.__version__} is installed")
    for name, members in listing(RTX).items():
        owner: Any = trt
        for part in name.split("."):
            owner = getattr(owner, part)
        assert {m for m in dir(owner) if not m.startswith("_")} == set(members), name
