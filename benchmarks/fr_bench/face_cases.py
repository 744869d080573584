"""The face warp's cases of `fr-deploy bench kernels`, and the same formula in plain float32 or float64 code."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fr_kernels
from fr_bench.case import Case, Inputs
from fr_kernels.face_warp import plan
from fr_kernels.face_warp.plan import Box, Drawing, Place


class Scene(NamedTuple):
    """Frames, and faces side by side in them, each turned by 7 degrees more than the last."""

    frames: int
    height: int
    width: int
    size: int
    """Side of the crops."""
    sides: tuple[int, ...]
    """Of the faces, frame pixels; one more than twice as large or as small as its crop is so by a power of two."""


SCENES = (
    Scene(2, 150, 480, 24, (6, 12, 30, 96)),
    Scene(1, 1080, 1920, 512, (128, 256, 600)),
    Scene(8, 1080, 1920, 512, (480,) * 8),
    Scene(1, 2160, 3840, 512, (128, 600, 128, 256, 600, 256)),
)


def face_cases() -> list[Case]:
    """All of them, the small ones first within each op."""
    return [*(_cut(scene) for scene in SCENES), *(_paste(scene) for scene in SCENES)]


def _cut(scene: Scene) -> Case:
    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        del dtype
        return (*_faces(scene, device), scene.size)

    def moved(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> int:
        places = plan.places(frames, which, matrices, size)
        return sum(3 * (place.part.pixels + size**2) for place in places)

    ours = fr_kernels.cut_faces
    return _case("cut_faces", scene, inputs=inputs, ours=ours, eager=_plain_cut, moved=moved)


def _paste(scene: Scene) -> Case:
    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        del dtype
        frames, which, matrices = _faces(scene, device)
        return frames, which, _noise(len(which), scene.size, scene.size, device), matrices

    def ours(
        frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor, impl: str
    ) -> Tensor:
        frames = frames.clone()
        fr_kernels.paste_faces(frames, which, restored, matrices, impl=impl)
        return frames

    def moved(frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor) -> int:
        """With the copy that `ours` makes; for a large face also its cut, and the crop read again."""
        size = restored.shape[1]
        places = plan.places(frames, which, matrices, size)
        crops = sum(2 * size**2 for place in places if place.large)
        pasted = sum(place.read + place.box.pixels + size**2 for place in places)
        return 2 * frames.nbytes + 3 * (pasted + crops)

    return _case("paste_faces", scene, inputs=inputs, ours=ours, eager=_plain_paste, moved=moved)


def _case(op: str, scene: Scene, **given: Any) -> Case:
    n, height, width, size, sides = scene
    return Case(
        op,
        f"[{n}, {height}, {width}, 3] S={size} {len(sides)} of {min(sides)}-{max(sides)} px",
        **given,
        compared=lambda output, *_: output if output.is_floating_point() else output.float(),
        on_cpu=size < 512,
        dtypes=("uint8",),
        compiled="cuda",
        captured=False,
    )


def _noise(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """The steepest picture there is."""
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, device=device)


def _faces(scene: Scene, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows: list[list[list[float]]] = []
    for i, side in enumerate(scene.sides):
        scale, angle = scene.size / side, math.radians(7 * i)
        c, s, middle = scale * math.cos(angle), scale * math.sin(angle), (scene.size - 1) / 2
        x, y = scene.width * (i + 0.5) / len(scene.sides), scene.height / 2
        rows.append([[c, -s, middle - c * x + s * y], [s, c, middle - s * x - c * y]])
    which = torch.arange(len(rows), dtype=torch.int32) % scene.frames
    frames = _noise(scene.frames, scene.height, scene.width, device)
    return frames, which, torch.tensor(rows, dtype=torch.float64)


def _places(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> list[Place]:
    # The oracle gets every tensor in float64.
    return plan.places(frames, which.int(), matrices, size)


def _plain_cut(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> Tensor:
    crops = [
        _drawn(_wide(place.part.of(frames[place.frame])), place.cut, Box(0, 0, size, size))
        for place in _places(frames, which, matrices, size)
    ]
    return _stored(torch.stack(crops), frames)


def _plain_paste(frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor) -> Tensor:
    frames, size = frames.clone(), restored.shape[1]
    for place in _places(frames, which, matrices, size):
        view, face, kept = place.box.of(frames[place.frame]), _wide(restored[place.face]), 0.0
        if place.large:
            part = _wide(place.part.of(frames[place.frame]))
            crop = _drawn(part, place.cut, Box(0, 0, size, size)).round().clamp(0, 255)
            kept = _kept(crop, face)
            face = face - kept * crop
        old, mask = _wide(view), _mask(place.matrix, place.box, size, face)
        drawn = _drawn(face, place.paste, place.box)
        view.copy_(_stored(old + mask * (drawn - (1 - kept) * old), view))
    return frames


def _wide(picture: Tensor) -> Tensor:
    return picture if picture.is_floating_point() else picture.float()


def _stored(values: Tensor, like: Tensor) -> Tensor:
    """As the frames are stored: as they are in float64, which is the oracle, else rounded."""
    values = values.clamp(0, 255)
    return values if like.is_floating_point() else values.round().to(like.dtype)


def _pixels(box: Box, like: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (
        torch.arange(start, stop, dtype=torch.float64, device=like.device)
        for start, stop in ((box.left, box.right), (box.top, box.bottom))
    )
    return x[None], y[:, None]


def _drawn(picture: Tensor, how: Drawing, box: Box) -> Tensor:
    """D of the formula at the pixels of a box: [H, W, 3] -> [height, width, 3]."""
    planes = picture.permute(2, 0, 1)[None]
    if how.reduce < 1:
        planes = F.avg_pool2d(planes, round(1 / how.reduce), ceil_mode=True)
    (x, y), to = _pixels(box, picture), how.to_source
    steps = (-how.spread, how.spread) if how.spread else (0.0,)
    total = planes.new_zeros(())
    for a, b in ((a, b) for a in steps for b in steps):
        u = to.xx * (x + a) + to.xy * (y + b) + to.x0
        v = to.yx * (x + a) + to.yy * (y + b) + to.y0
        across, down = ((n - 1) / 2 for n in (planes.shape[3], planes.shape[2]))
        grid = torch.stack([u / across - 1, v / down - 1], -1)[None].to(planes.dtype)
        total = total + F.grid_sample(planes, grid, "bicubic", "reflection", align_corners=True)
    return total[0].permute(1, 2, 0) / len(steps) ** 2


def _mask(matrix: plan.Affine, box: Box, size: int, like: Tensor) -> Tensor:
    x, y = _pixels(box, like)
    u = (matrix.xx * x + matrix.xy * y + matrix.x0 + 0.5) * 2 / size - 1
    v = (matrix.yx * x + matrix.yy * y + matrix.y0 + 0.5) * 2 / size - 1
    ramp = ((0.97 - (u**4 + v**4) ** 0.25) / 0.2).clamp(0, 1)
    return (ramp**2 * (3 - 2 * ramp)).to(like.dtype)[..., None]


def _kept(crop: Tensor, restored: Tensor) -> float:
    line = torch.exp(-2 * torch.arange(-2, 3, dtype=crop.dtype, device=crop.device) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2

    def fine(picture: Tensor) -> Tensor:
        planes = picture.permute(2, 0, 1)[:, None]
        return planes - F.conv2d(F.pad(planes, (2, 2, 2, 2), "reflect"), kernel[None, None])

    size, (before, after) = len(crop), (fine(x) for x in (crop, restored))
    weighted = before * _mask(plan.scaling(1), Box(0, 0, size, size), size, crop)[..., 0]
    return min(max(float((weighted * after).sum() / (weighted * before).sum()), 0.0), 1.0)
