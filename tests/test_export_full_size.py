"""The published size, with random weights: exported by part, compared, and built as engines without a GPU."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fr_export
from fr_deploy.manifest import PARTS
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph

LEAST = {"encoder": 0.95, "adapter": 0.9, "unet": 0.99, "decoder": 0.99}
"""Share of the multiplications in half precision: the rest are the codebook's distances, float32 in any graph."""


def full_size() -> RestorationGraph:
    torch.manual_seed(0)
    return RestorationGraph.of(LafrModel(PRESETS["lafr-sd21"]).eval().requires_grad_(False))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_tensorrt_rtx_builds_every_part_in_float16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, str], None]
) -> None:
    """One face is compared, the portrait: 4 TFLOPs, a minute in onnxruntime and as much in torch."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    monkeypatch.setattr("fr_export.verify.RANDOM", 0)
    out, said = tmp_path / "full", list[str]()
    manifest = fr_export.export(
        full_size(), out, format="tensorrt-rtx", batch="1:4:8", say=said.append
    )
    for line in said:
        record_property("figure", line)
    assert manifest.verified == "onnx only"
    assert manifest.parity.psnr_forced is None or manifest.parity.psnr_forced >= 40
    assert manifest.parity.codes >= 0.99
    assert [component.name for component in manifest.components] == list(PARTS)
    for component in manifest.components:
        graph, engine = component.file("onnx"), component.file("engine")
        assert graph is not None
        assert engine is not None
        assert (out / engine.path).stat().st_size == engine.bytes > graph.bytes
        assert component.half >= LEAST[component.name]
        line = next(line for line in said if line.startswith(engine.path))
        assert re.search(rf"{engine.bytes / 1e6:.1f} MB, .*; \d+\.\d s, up to \d\.\d\d GB", line)
