"""A small network with what engines find hard, as an ONNX file."""

from pathlib import Path

import torch
from torch import nn

from fr_export.lowering import TRANSLATIONS


class Network(nn.Module):
    """Bytes in, bytes out; a convolution, a norm, and attention with heads of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.norm, self.qkv = nn.GroupNorm(4, 16), nn.Conv2d(16, 48, 1)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        x = faces.to(self.conv_in.weight.dtype).permute(0, 3, 1, 2)
        x = self.norm(self.conv_in(x))
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (6, 8)).transpose(2, 3).chunk(3, 1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.conv_out(x + seen.transpose(2, 3).flatten(1, 2).view_as(x))
        return x.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def export(
    path: Path, dtype: torch.dtype, *, opset: int = 20, dynamic: bool = True, ours: bool = True
) -> Path:
    torch.manual_seed(0)
    program = torch.onnx.export(
        Network().eval().to(dtype),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=opset,
        input_names=["faces"],
        output_names=["restored"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None,
        custom_translation_table=TRANSLATIONS if ours else None,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return path
