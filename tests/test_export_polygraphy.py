"""What docs/engines.md says polygraphy does with an exported directory, as far as it needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("polygraphy", reason="pip install 'fr-deploy[debug]'")
POLYGRAPHY = Path(sys.executable).parent / "polygraphy"


def polygraphy(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [POLYGRAPHY, *arguments],
        env=os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_tensor_of_a_part_is_printed(exported: Path, tmp_path: Path) -> None:
    shapes = ("--input-shapes", "latent:[1,4,16,16]")
    said = polygraphy(
        tmp_path, "run", str(exported / "adapter.onnx"), "--onnxrt", "--onnx-outputs", "mark", "all", *shapes
    )  # fmt: skip
    assert "aligned [dtype=float32, shape=(1, 4, 16, 16)]" in said
    assert said.count("dtype=float32") > 20


@pytest.mark.slow
def test_tensorrt_rtx_parses_every_part(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    for part in ("encoder", "adapter", "unet", "decoder"):
        said = polygraphy(tmp_path, "inspect", "capability", str(exported / f"{part}.onnx"))
        assert "Graph is fully supported by TensorRT" in said
