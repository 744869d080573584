"""Run the OpenVINO IR of a face generator in plain torch: batched, on any device, with gradients.

The `random-face` wheel carries MobileStyleGAN (FFHQ, 1024 px) as two OpenVINO IR networks. An IR is a
list of layers in XML and one blob of constants, so it is read here directly and stored once as a
safetensors file whose metadata holds the layer list; nothing of OpenVINO is needed to run it.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fr_training.rounded import restored

Node = dict[str, Any]  # {"type": str, "in": [[name, port], ...], "attr": {str: str}, "name": str}
_DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32}


def nodes_from_ir(xml: Path, blob: Path) -> tuple[list[Node], dict[str, Tensor]]:
    """Read one IR network (version 10 or 11).

    Returns:
        The layers in topological order, and the constants by layer name (float32 or int64).
    """
    root = ET.parse(xml).getroot()
    data = blob.read_bytes()
    layers = {layer.attrib["id"]: layer for layer in root.iterfind("layers/layer")}
    inputs: dict[str, list[tuple[int, str, int]]] = {key: [] for key in layers}
    for edge in root.iterfind("edges/edge"):
        at = edge.attrib
        source = layers[at["from-layer"]]
        outs = [port.attrib["id"] for port in source.iterfind("output/port")]
        inputs[at["to-layer"]].append(
            (int(at["to-port"]), at["from-layer"], outs.index(at["from-port"]))
        )
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    for key in _topological(inputs):
        layer, element = layers[key], layers[key].find("data")
        attr = dict(element.attrib) if element is not None else {}
        if layer.attrib["type"] == "Const":
            constants[key] = _constant(attr, data)
        wired = [[source, port] for _, source, port in sorted(inputs[key])]
        nodes.append({"type": layer.attrib["type"], "name": key, "in": wired, "attr": attr})
    return nodes, constants


def _topological(inputs: dict[str, list[tuple[int, str, int]]]) -> list[str]:
    order: dict[str, None] = {}
    stack = list(inputs)
    while stack:
        key = stack[-1]
        missing = [source for _, source, _ in inputs[key] if source not in order]
        if key in order or not missing:
            order.setdefault(stack.pop())
        else:
            stack.extend(missing)
    return list(order)


def _constant(attr: dict[str, str], data: bytes) -> Tensor:
    shape = [int(d) for d in attr["shape"].split(",") if d.strip()]
    start, dtype = int(attr["offset"]), np.dtype(_DTYPES[attr["element_type"]])
    array = np.frombuffer(data, dtype, int(attr["size"]) // dtype.itemsize, start).reshape(shape)
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def save_generator(directory: Path, out: Path) -> None:
    """Convert `MappingNetwork.{xml,bin}` and `SynthesisNetwork.{xml,bin}` in `directory` to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    graph: dict[str, list[Node]] = {}
    for name in ("Mapping", "Synthesis"):
        nodes, constants = nodes_from_ir(
            directory / f"{name}Network.xml", directory / f"{name}Network.bin"
        )
        graph[name] = nodes
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in constants.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file(tensors, part, metadata={"graph": json.dumps(graph)})
    part.replace(out)


class FaceGenerator(nn.Module):
    """MobileStyleGAN from `save_generator`'s file: noise -> style -> FFHQ-aligned face."""

    style_mean: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        with safe_open(path, framework="pt") as file:
            graph: dict[str, list[Node]] = json.loads(file.metadata()["graph"])
        tensors = restored(load_file(path))
        self.mapping, self.synthesis = (
            _Network(
                graph[net],
                {k.removeprefix(f"{net}."): v for k, v in tensors.items() if k.startswith(net)},
            )
            for net in ("Mapping", "Synthesis")
        )
        noise = torch.from_numpy(
            np.random.default_rng(0).standard_normal((4096, 512)).astype(np.float32)
        )
        with torch.no_grad():
            self.register_buffer("style_mean", self.mapping(noise).mean(0, keepdim=True))

    def forward(self, noise: Tensor, psi: Tensor) -> Tensor:
        """Generate faces.

        Args:
            noise: [B, 512] float32, standard normal.
            psi: [B, 1] truncation; 1 = full variety, 0 = the mean face.

        Returns:
            [B, 3, 1024, 1024] float32 RGB in about [-1, 1].
        """
        style = self.style_mean + psi * (self.mapping(noise) - self.style_mean)
        return self.synthesis(style)


class _Network(nn.Module):
    def __init__(self, nodes: list[Node], constants: dict[str, Tensor]) -> None:
        super().__init__()
        self.nodes = nodes
        for key, value in constants.items():
            self.register_buffer(f"c{key}", value)
        self._small = {k: v.tolist() for k, v in constants.items() if v.dtype == torch.int64}
        uses: dict[str, str] = {source: node["name"] for node in nodes for source, _ in node["in"]}
        self._last: dict[str, list[str]] = {}
        for source, user in uses.items():
            self._last.setdefault(user, []).append(source)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, list[Any]] = {}
        for node in self.nodes:
            kind, name = node["type"], node["name"]
            if kind == "Const":
                values[name] = [
                    self._small[name] if name in self._small else getattr(self, f"c{name}")
                ]
            elif kind == "Parameter":
                values[name] = [x]
            else:
                args = [values[source][port] for source, port in node["in"]]
                if kind == "Result":
                    return args[0]
                out = _OPS[kind](node["attr"], *args)
                values[name] = out if kind == "VariadicSplit" else [out]
            for dead in self._last.get(name, ()):
                values.pop(dead, None)
        raise ValueError("the IR has no Result layer")


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _conv(attr: dict[str, str], x: Tensor, weight: Tensor) -> Tensor:
    groups = 1
    if weight.ndim == 5:  # GroupConvolution stores [groups, out / groups, in / groups, kh, kw]
        groups, weight = weight.shape[0], weight.flatten(0, 1)
    (top, left), (bottom, right) = _ints(attr["pads_begin"]), _ints(attr["pads_end"])
    padding: list[int] | int = [top, left]
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, [left, right, top, bottom]), 0
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(
        x, weight, None, _ints(attr["strides"]), padding, _ints(attr["dilations"]), groups
    )


def _deconv(attr: dict[str, str], x: Tensor, weight: Tensor) -> Tensor:
    stride, (channels, per_in, per_out, kh, kw) = _ints(attr["strides"]), weight.shape
    if (
        (per_in, per_out) == (1, 1)
        and stride == [kh, kw]
        and "1" not in attr["pads_begin"] + attr["pads_end"]
    ):
        # The inverse wavelet steps: taps do not overlap, so a product replaces the (slow on CPU) depthwise transpose.
        taps = x[:, :, :, None, :, None] * weight.reshape(1, channels, 1, kh, 1, kw)
        return taps.reshape(x.shape[0], channels, x.shape[2] * kh, x.shape[3] * kw)
    out = F.conv_transpose2d(x, weight.flatten(0, 1), stride=stride, groups=channels)
    (top, left), (bottom, right) = _ints(attr["pads_begin"]), _ints(attr["pads_end"])
    return out[..., top : out.shape[-2] - bottom, left : out.shape[-1] - right]


def _reshape(attr: dict[str, str], x: Tensor, shape: list[int]) -> Tensor:
    zero = attr.get("special_zero") == "true"
    return x.reshape([x.shape[i] if size == 0 and zero else size for i, size in enumerate(shape)])


def _matmul(attr: dict[str, str], a: Tensor, b: Tensor) -> Tensor:
    a = a.mT if attr.get("transpose_a") == "true" else a
    return a @ (b.mT if attr.get("transpose_b") == "true" else b)


def _prelu(_: dict[str, str], x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.reshape(-1))


def _unsqueeze(_: dict[str, str], x: Any, axes: list[int]) -> Any:
    if isinstance(x, Tensor):
        for axis in axes:
            x = x.unsqueeze(axis)
        return x
    return [x] if isinstance(x, int) else x


def _squeeze(_: dict[str, str], x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.squeeze(axis)
    return x


def _gather(_: dict[str, str], x: Any, index: Any, axis: int) -> Any:
    if not isinstance(x, Tensor):
        return x[index] if isinstance(index, int) else [x[i] for i in index]
    picked = x.index_select(axis, torch.as_tensor(index, device=x.device).reshape(-1))
    return picked.squeeze(axis) if isinstance(index, int) else picked


def _broadcast(attr: dict[str, str], x: Any, shape: list[int]) -> Any:
    if isinstance(x, Tensor):  # "bidirectional": a target extent of 1 keeps the input's
        shape = (
            list(torch.broadcast_shapes(x.shape, shape))
            if attr.get("mode") == "bidirectional"
            else shape
        )
        return torch.broadcast_to(x, shape)
    return (x if isinstance(x, list) else [x]) * shape[0]


def _concat(attr: dict[str, str], *parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, int(attr["axis"]))
    return [value for part in parts for value in part]


def _add(_: dict[str, str], a: Any, b: Any) -> Any:
    return a + b


def _multiply(_: dict[str, str], a: Any, b: Any) -> Any:
    if isinstance(a, list):
        return [x * y for x, y in zip(a, b if len(b) == len(a) else b * len(a), strict=True)]
    return a * b


_OPS: dict[str, Callable[..., Any]] = {
    "Add": _add,
    "Multiply": _multiply,
    "Power": lambda _, a, b: a**b,
    "ReduceMean": lambda attr, x, axes: x.mean(dim=axes, keepdim=attr["keep_dims"] == "true"),
    "MatMul": _matmul,
    "PReLU": _prelu,
    "Convolution": _conv,
    "GroupConvolution": _conv,
    "GroupConvolutionBackpropData": _deconv,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Concat": _concat,
    "ShapeOf": lambda _, x: list(x.shape) if isinstance(x, Tensor) else [len(x)],
    "Broadcast": _broadcast,
    "Tile": lambda _, x, reps: x.repeat(reps),
    "VariadicSplit": lambda _, x, axis, sizes: list(x.split(sizes, axis)),
}
