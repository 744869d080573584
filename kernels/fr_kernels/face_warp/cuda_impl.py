"""The face warp in CUDA C++, `csrc/face_warp.cu` (formula: `reference.py`; kernels and their arguments: there).

Here the table `jobs` is made, one row a face, and the kernels are launched: cutting takes one launch, or two where a
face shrinks by more than half; pasting those of `plan.paste_launches` for each layer of faces that do not touch. Memory
besides the result: 12 bytes an averaged pixel, which are at most 8 S^2 a face and a margin, and S^2 x 3 bytes for each
face larger than its crop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fr_kernels import nvrtc
from fr_kernels.face_warp import plan, reference
from fr_kernels.face_warp.plan import Box, Drawing, Place

SOURCE = "face_warp"
THREADS = 256
DETAIL_BLOCKS = 64  # of face_detail for each face: 16 pixels a thread at 512 px


class Work(NamedTuple):
    """One row of `jobs` before its blocks are numbered."""

    place: Place
    large: int
    """Which of the large faces of the launch; -1: none of them."""
    source: tuple[int, int, int, int]
    """First byte, pitch, height, width."""
    how: Drawing
    target: tuple[int, int]
    """First byte, pitch."""
    box: Box
    """The output's pixels in its own coordinates."""


class Table(NamedTuple):
    """`jobs` on the GPU, and the sizes of the launches that read it."""

    jobs: Tensor
    averages: Tensor
    average_blocks: int
    draw_blocks: int


def cut_faces(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> Tensor:
    """As `reference.cut_faces`."""
    crops = frames.new_empty((len(which), size, size, 3))
    _cut(frames, plan.places(frames, which, matrices, size), crops)
    return crops


def paste_faces(
    frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor, blend: float
) -> Tensor:
    """As `reference.paste_faces`."""
    faces = plan.places(frames, which, matrices, restored.shape[1])
    read = [[place.read, 0] for place in faces]
    counts = torch.tensor(read, dtype=torch.int64).view(-1, 2).to(frames.device)
    restored = restored.contiguous()
    for layer in plan.layers(faces):
        _paste(frames, layer, restored, blend, counts)
    return counts


def _cut(frames: Tensor, faces: Sequence[Place], crops: Tensor) -> Table:
    size = crops.shape[1]
    works = [
        Work(place, at, _part_of(frames, place), place.cut, (at * 3 * size * size, 3 * size),
             Box(0, 0, size, size))
        for at, place in enumerate(faces)
    ]  # fmt: skip
    table = _table(works, frames.device)
    _average(frames, table)
    nvrtc.launch(
        SOURCE, "face_cut", table.draw_blocks, THREADS,
        frames, table.jobs, len(works), table.averages, crops,
    )  # fmt: skip
    return table


def _paste(
    frames: Tensor, layer: Sequence[Place], restored: Tensor, blend: float, counts: Tensor
) -> None:
    size = restored.shape[1]
    large = [place for place in layer if place.large]
    crops = restored.new_empty((len(large), size, size, 3))
    kept = _kept(frames, large, restored, crops)
    works = [
        Work(place, large.index(place) if place.large else -1,
             (place.face * 3 * size * size, 3 * size, size, size), place.paste,
             _bytes_of(frames, place.frame, place.box), place.box)
        for place in layer
    ]  # fmt: skip
    table = _table(works, frames.device)
    _average(restored, table)
    nvrtc.launch(
        SOURCE, "face_blend", table.draw_blocks, THREADS,
        frames, restored, table.jobs, len(works), table.averages, crops, kept, size, float(blend), counts,
    )  # fmt: skip


def _kept(frames: Tensor, large: Sequence[Place], restored: Tensor, crops: Tensor) -> Tensor:
    """g of each large face, float32; their crops are cut on the way."""
    kept = torch.empty(len(large), dtype=torch.float32, device=frames.device)
    if not large:
        return kept
    table = _cut(frames, large, crops)
    size = crops.shape[1]
    blocks = min(-(-size * size // THREADS), DETAIL_BLOCKS)
    partials = torch.empty((len(large), blocks, 2), dtype=torch.float64, device=frames.device)
    weights = reference.gaussian()[reference.TAPS :]
    nvrtc.launch(
        SOURCE, "face_detail", len(large) * blocks, THREADS,
        crops, restored, table.jobs, size, blocks, *weights, partials,
    )  # fmt: skip
    nvrtc.launch(
        SOURCE, "face_keep", -(-len(large) // THREADS), THREADS,
        partials, len(large), blocks, kept,
    )  # fmt: skip
    return kept


def _average(pictures: Tensor, table: Table) -> None:
    nvrtc.launch(
        SOURCE, "face_average", table.average_blocks, THREADS,
        pictures, table.jobs, len(table.jobs), table.averages,
    )  # fmt: skip


def _table(works: Sequence[Work], device: torch.device) -> Table:
    """The pixels of all faces lie end to end, so that no block is without work."""
    rows: list[list[float]] = []
    average = average_blocks = draw_blocks = 0
    for work in works:
        rows.append(_row(work, average, average_blocks, draw_blocks))
        if work.how.reduce < 1:
            pixels = work.how.rows * work.how.columns
            average += 3 * pixels
            average_blocks += -(-pixels // THREADS)
        draw_blocks += -(-work.box.pixels // THREADS)
    jobs = torch.tensor(rows, dtype=torch.float64).to(device)
    averages = torch.empty(average, dtype=torch.float32, device=device)
    return Table(jobs, averages, average_blocks, draw_blocks)


def _row(work: Work, average: int, average_block: int, draw_block: int) -> list[float]:
    """The fields of `enum Field`, in its order."""
    how, box = work.how, work.box
    return [
        *work.source,
        how.reduce, how.rows, how.columns, average, average_block, how.spread, *how.to_source,
        *work.target, box.left, box.top, box.width, box.height, draw_block,
        work.place.face, work.large, *work.place.matrix,
    ]  # fmt: skip


def _part_of(frames: Tensor, place: Place) -> tuple[int, int, int, int]:
    return (*_bytes_of(frames, place.frame, place.part), place.part.height, place.part.width)


def _bytes_of(frames: Tensor, frame: int, box: Box) -> tuple[int, int]:
    """First byte of a box of a frame, and bytes from row to row."""
    at = frame * frames.stride(0) + box.top * frames.stride(1) + 3 * box.left
    return at, frames.stride(1)
