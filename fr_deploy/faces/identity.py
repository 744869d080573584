"""How alike two faces are: dlib's face recognition network, in PyTorch.

A ResNet of 29 convolutions (King 2017, dlib's `dlib_face_recognition_resnet_model_v1`), 128 numbers
a face. The weights are the uint8 copy of @vladmandic/face-api (see `fr_deploy/weights/NOTICE.md`);
on the same chips they lie 1.3 to 1.6 degrees from dlib's own (cosine 0.9996 or more).

A dlib degree is not an ArcFace degree, the "Deg" of the papers: two photos of one person lie about
13 degrees apart here and two people about 30, where ArcFace puts two people at 80 to 90.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from fr_deploy.errors import UsageError
from fr_deploy.faces.geometry import warp

WEIGHTS = Path(__file__).parent.parent / "weights" / "dlib-resnet29-uint8.safetensors"
MEAN_RGB = (122.782, 117.001, 104.298)
CHIP = 150
# From an FFHQ crop of 512 px to dlib's chip: dlib aligns tighter, so this is one fixed window.
FFHQ_TO_CHIP = np.array([[0.4342, 0.0, -38.05], [0.0, 0.4342, -59.58]])
BATCH = 16


class AffineConv(nn.Module):
    """A convolution and the per-channel factor and shift that dlib's batch norm became."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int) -> None:
        super().__init__()
        padding = side // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, side, stride, padding)
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W']."""
        return self.conv(x) * self.scale[:, None, None] + self.shift[:, None, None]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; with `halve`, at half the size.

    A shortcut that halves averages 2x2 and pads missing channels with zeros; the two paths then
    differ by a row and a column, which dlib fills with zeros too.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.conv1 = AffineConv(inputs, outputs, 3, 2 if halve else 1)
        self.conv2 = AffineConv(outputs, outputs, 3, 1)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H or H/2, W or W/2]."""
        y = self.conv2(self.conv1(x).relu())
        if not self.halve:
            return (x + y).relu()
        x = F.avg_pool2d(x, 2)
        height, width = max(x.shape[2], y.shape[2]), max(x.shape[3], y.shape[3])
        x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, y.shape[1] - x.shape[1]))
        y = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2]))
        return (x + y).relu()


class DlibResNet(nn.Module):
    """RGB chips, float32 [N, 3, 150, 150] of 0..255, to float32 [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)
        self.conv32_down = AffineConv(3, 32, 7, 2)
        blocks: dict[str, Residual] = {}
        width = 32
        for outputs, repeats in ((32, 3), (64, 3), (128, 2), (256, 2)):
            if outputs != width:
                blocks[f"conv{outputs}_down"] = Residual(width, outputs, halve=True)
            for i in range(1, repeats + 1):
                blocks[f"conv{outputs}_{i}"] = Residual(outputs, outputs)
            width = outputs
        blocks["conv256_down_out"] = Residual(256, 256, halve=True)
        self.blocks = nn.ModuleDict(blocks)
        self.fc = nn.Linear(256, 128, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        """Embed."""
        x = (chips - self.mean) / 256
        x = F.max_pool2d(self.conv32_down(x).relu(), 3, 2)
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3)))


def load_dlib_resnet(path: Path = WEIGHTS) -> DlibResNet:
    """The network with its committed weights, in float32 and evaluation mode."""
    network = DlibResNet()
    with safe_open(path, "pt") as file:
        ranges: dict[str, tuple[float, float]] = json.loads(file.metadata()["ranges"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, (scale, low) in ranges.items():
        stored[name] = stored[name] * scale + low
    state = {_module_name(name): tensor for name, tensor in stored.items()}
    state["fc.weight"] = state["fc.weight"].T
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _module_name(name: str) -> str:
    if name == "fc":
        return "fc.weight"
    for theirs, ours in (
        ("conv.filters", "conv.weight"),
        ("scale.weights", "scale"),
        ("scale.biases", "shift"),
    ):
        name = name.replace(theirs, ours)
    return name if name.startswith("conv32_down.") else f"blocks.{name}"


class FaceEmbedder:
    """Embeds FFHQ-aligned crops; compare the results with `deg_dlib`."""

    def __init__(self, device: str = "cpu") -> None:
        self._network = load_dlib_resnet().to(device)
        self._device = device

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe faces.

        Args:
            crops: uint8 [N, 512, 512, 3] RGB, FFHQ-aligned.

        Returns:
            float32 [N, 128], not normalised; about 1.4 long.

        Raises:
            UsageError: the crops are not of that shape.
        """
        if crops.ndim != 4 or crops.shape[1:] != (512, 512, 3):
            raise UsageError(f"crops have shape {crops.shape}; give [N, 512, 512, 3] aligned faces")
        rows = [self._embed(crops[i : i + BATCH]) for i in range(0, len(crops), BATCH)]
        return np.concatenate(rows) if rows else np.empty((0, 128), np.float32)

    @torch.inference_mode()
    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        chips = np.stack([warp(crop, FFHQ_TO_CHIP, (CHIP, CHIP)) for crop in crops])
        images = torch.from_numpy(chips).to(self._device).permute(0, 3, 1, 2).float()
        return self._network(images).cpu().numpy()


def deg_dlib(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """The angle between embeddings, in dlib degrees (not ArcFace's; see the head of this file).

    Args:
        a: float32 [N, 128].
        b: float32 [N, 128].

    Returns:
        float32 [N], degrees, 0 for equal faces.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosine = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).astype(np.float32)
