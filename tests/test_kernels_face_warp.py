"""face_warp: the torch reference against the formula in float64, pixel by pixel, and the operators around it."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.face_warp import draw, plan
from fr_kernels.face_warp.op import cut_faces, paste_faces
from kernel_checks import check_operator, compiles_whole
from scenes import face_crop, texture

Array = NDArray[np.float64]
SIZE = 48
# Half a grey level of rounding, and what a float32 coordinate can cost: 2^-24 of a part of 700 px, times the steepest
# slope of a bicubic interpolation of 0 and 255, some 570 levels a pixel.
ROUNDING, COORDINATES = 0.5, 0.03
# Frame -> crop: angle, scale (0.2: a face five times as large as its crop), middle of the face.
MIDDLE, BORDER = (205.3, 170.6), (31.7, 340.2)
PLACES = [
    *[(angle, scale, MIDDLE) for scale in (0.2, 0.37, 0.7, 1.1, 4.0) for angle in (0, 25, 180)],
    (0, 1.0, MIDDLE),
    *[(angle, scale, BORDER) for scale in (0.2, 0.7, 1.5) for angle in (0, 25)],
]


def _picture() -> NDArray[np.uint8]:
    """[345, 410, 3]: a photo, and from its middle to the right the steepest picture there is."""
    picture = face_crop("p005-selfie")[90:435, 60:470].copy()
    picture[:, 200:] = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (345, 210, 3))
    return picture


def _matrix(angle: float, scale: float, middle: tuple[float, float], size: int = SIZE) -> Array:
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack([turn, (size - 1) / 2 - turn @ middle])


def _tensors(frame: NDArray[np.uint8], *matrices: Array) -> tuple[torch.Tensor, ...]:
    maps = torch.from_numpy(np.array(matrices, np.float64).reshape(-1, 2, 3))
    return torch.from_numpy(frame.copy())[None], torch.zeros(len(maps), dtype=torch.int32), maps


# The oracle: the formula at the head of reference.py in float64, one output pixel at a time, sharing no code.


def _kernel(t: Array) -> Array:
    t, a = np.abs(t), -0.75
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _mirror(i: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    if n == 1:
        return np.zeros_like(i)
    i = np.abs(i) % (2 * n - 2)
    return np.where(i < n, i, 2 * n - 2 - i)


def _bicubic(p: Array, x: Array, y: Array) -> Array:
    total = np.zeros((len(x), p.shape[2]))
    for j in range(-1, 3):
        for i in range(-1, 3):
            u, v = np.floor(x) + i, np.floor(y) + j
            pixel = p[_mirror(v.astype(int), p.shape[0]), _mirror(u.astype(int), p.shape[1])]
            total += (_kernel(x - u) * _kernel(y - v))[:, None] * pixel
    return total


def _shrink(n: int, r: float) -> Array:
    """[round(n r), n]: the j-th row averages the pixels of [j / r, (j + 1) / r)."""
    j = np.arange(round(n * r))[:, None]
    low, high = j / r, np.minimum((j + 1) / r, n)
    share = np.clip(np.minimum(high, np.arange(n) + 1) - np.maximum(low, np.arange(n)), 0, None)
    return share / (high - low)


def _inverse(matrix: Array) -> Array:
    return np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]


def _draw(p: Array, matrix: Array, x: Array, y: Array) -> Array:
    """D of the picture at output pixels x, y [n]: [n, 3]."""
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    back = _inverse(matrix)
    if scale >= 1:
        return _bicubic(p, *(back @ (x, y, np.ones_like(x))))
    r = min(1.0, max(2 * scale, 2 / min(p.shape[:2])))
    q = p
    if r < 1:
        q = np.tensordot(_shrink(p.shape[0], r), p, 1)
        q = np.tensordot(_shrink(p.shape[1], r), q, (1, 1)).swapaxes(0, 1)
    total = np.zeros((len(x), p.shape[2]))
    for a in (-0.25, 0.25):
        for b in (-0.25, 0.25):
            at = back @ (x + a, y + b, np.ones_like(x))
            total += _bicubic(q, *((at + 0.5) * r - 0.5)) / 4
    return total


def _box(matrix: Array, size: int, frame: Array, margin: int) -> tuple[slice, slice]:
    edge = np.array([-0.5, size - 0.5])
    x, y = _inverse(matrix) @ (edge[[0, 1, 0, 1]], edge[[0, 0, 1, 1]], np.ones(4))
    spans: list[slice] = []
    for at, length in ((y, frame.shape[0]), (x, frame.shape[1])):
        low, high = math.floor(at.min()) - margin, math.ceil(at.max()) + 1 + margin
        low, high = max(low, 0), min(high, length)
        spans.append(slice(min(low, length - 1), max(high, 1)) if margin else slice(low, high))
    return spans[0], spans[1]


def _cut(frame: Array, matrix: Array, size: int) -> Array:
    """Not rounded, but clamped."""
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    rows, columns = _box(matrix, size, frame, 1 + math.ceil(3 / min(1, 2 * scale)))
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
    y, x = np.mgrid[:size, :size].reshape(2, -1).astype(float)
    return _draw(frame[rows, columns], moved, x, y).clip(0, 255).reshape(size, size, 3)


def _radius(x: Array, y: Array, size: int) -> Array:
    u, v = (x + 0.5) * 2 / size - 1, (y + 0.5) * 2 / size - 1
    return (u**4 + v**4) ** 0.25


def _mask(radius: Array) -> Array:
    t = np.clip((0.97 - radius) / 0.2, 0, 1)
    return t * t * (3 - 2 * t)


def _detail(p: Array) -> Array:
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.5**2))
    n, blurred = len(p), np.zeros_like(p)
    for j, b in enumerate(weights / weights.sum()):
        for i, a in enumerate(weights / weights.sum()):
            rows, columns = (_mirror(np.arange(n) + k - 2, n) for k in (j, i))
            blurred += a * b * p[rows][:, columns]
    return p - blurred


def _keep(crop: Array, restored: Array) -> float:
    y, x = np.mgrid[: len(crop), : len(crop)].astype(float)
    weighted = _mask(_radius(x, y, len(crop)))[..., None] * _detail(crop)
    energy = (weighted * _detail(crop)).sum()
    return float(np.clip((weighted * _detail(restored)).sum() / energy, 0, 1)) if energy else 1.0


def _paste(
    frame: Array, restored: Array, matrix: Array, blend: float, crop: Array
) -> tuple[Array, Array]:
    """The frame, clamped but not rounded, and each pixel's radius in the crop (infinite outside its box)."""
    size, out = len(restored), frame.copy()
    radius = np.full(frame.shape[:2], np.inf)
    rows, columns = _box(matrix, size, frame, 0)
    y, x = np.mgrid[rows, columns].reshape(2, -1).astype(float)
    kept, face = 0.0, restored
    if abs(np.linalg.det(matrix[:, :2])) < 1:
        kept = _keep(crop, restored)
        face = restored - kept * crop
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    radius[rows, columns] = _radius(*(matrix @ (x, y, np.ones_like(x))), size).reshape(shape)
    drawn = _draw(face, _inverse(matrix), x, y).reshape(*shape, 3)
    old, mask = frame[rows, columns], _mask(radius[rows, columns])[..., None]
    out[rows, columns] = (old + blend * mask * (drawn - (1 - kept) * old)).clip(0, 255)
    return out, radius


@pytest.mark.parametrize(("angle", "scale", "middle"), PLACES)
def test_a_cut_is_the_formula(angle: float, scale: float, middle: tuple[float, float]) -> None:
    frame, matrix = _picture(), _matrix(angle, scale, middle)
    (crop,) = cut_faces(*_tensors(frame, matrix), SIZE).double().numpy()
    exact = _cut(frame.astype(float), matrix, SIZE)
    assert np.abs(crop - exact).max() <= ROUNDING + COORDINATES


@pytest.mark.parametrize(("angle", "scale", "middle"), PLACES)
def test_a_paste_is_the_formula(angle: float, scale: float, middle: tuple[float, float]) -> None:
    """The restored face is a blurred crop, so that the share of its detail kept is neither 0 nor 1."""
    frame, matrix = _picture(), _matrix(angle, scale, middle)
    exact = frame.astype(float)
    frames, which, maps = _tensors(frame, matrix)
    crop = cut_faces(frames, which, maps, SIZE)
    restored = draw.rounded(0.5 * crop + 0.4 * crop.roll(1, 2) + 9)
    before, after = crop[0].double().numpy(), restored[0].double().numpy()
    counts = paste_faces(frames, which, restored, maps, 0.9)
    pasted = frames[0].numpy()
    wanted, radius = _paste(exact, after, matrix, 0.9, before)
    assert np.abs(pasted - wanted).max() <= ROUNDING + COORDINATES
    # A pixel whose mask is zero to seven digits may be counted or not.
    assert (radius < 0.9699).sum() <= int(counts[0, 1]) <= (radius < 0.9701).sum()
    np.testing.assert_array_equal(pasted[radius > 0.9701], frame[radius > 0.9701])
    if scale < 1:
        assert 0.05 < _keep(before, after) < 0.95
        # With the crop from float64, too, where a rounding of it may have gone the other way.
        own = np.rint(_cut(exact, matrix, SIZE))
        assert np.abs(pasted - _paste(exact, after, matrix, 0.9, own)[0]).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 300), (7, 5)])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 20.0])
def test_frames_of_any_size(shape: tuple[int, int], scale: float) -> None:
    frame = texture(*shape, 3)
    for middle in ((shape[1] / 2, shape[0] / 2), (9000.0, -700.0)):
        matrix = _matrix(10, scale, middle, 16)
        frames, which, maps = _tensors(frame, matrix)
        (crop,) = cut_faces(frames, which, maps, 16).double().numpy()
        exact = _cut(frame.astype(float), matrix, 16)
        # Far away the mirror image repeats, and so do the roundings of the coordinates.
        assert np.abs(crop - exact).max() <= ROUNDING + (COORDINATES if middle[0] < 9000 else 0.5)
        restored = torch.full((1, 16, 16, 3), 200, dtype=torch.uint8)
        counts = paste_faces(frames, which, restored, maps)
        if middle[0] == 9000:
            assert counts.tolist() == [[0, 0]]
            np.testing.assert_array_equal(frames[0].numpy(), frame)


@pytest.mark.parametrize("scale", [0.3, 2.5])
def test_cost_does_not_grow_with_the_frame(scale: float) -> None:
    """The same face in 1 and in 24 megapixels: as many pixels read and written, and no other pixel is read."""
    small = _picture()
    restored = torch.from_numpy(face_crop("p009-selfie")[None, ::8, ::8].copy())
    results: list[tuple[list[list[int]], torch.Tensor, torch.Tensor]] = []
    for height, width, left, top, around in (
        (1000, 1000, 20, 10, 0),
        (4000, 6000, 4520, 2410, 255),
    ):
        frame = torch.full((1, height, width, 3), around, dtype=torch.uint8)
        view = frame[0, top : top + 345, left : left + 410]
        view.copy_(torch.from_numpy(small))
        matrix = _matrix(25, scale, (left + 205.0, top + 170.0), 64)
        which, maps = torch.zeros(1, dtype=torch.int32), torch.from_numpy(matrix)[None]
        crop = cut_faces(frame, which, maps, 64)
        counts = paste_faces(frame, which, restored, maps)
        results.append((counts.tolist(), crop, view.clone()))
        view.fill_(around)
        assert frame.eq(around).all()
    (counts, crop, view), other = results
    assert counts == other[0]
    assert torch.equal(crop, other[1])
    assert torch.equal(view, other[2])
    side = 64 / scale
    assert counts[0][1] < side**2 < counts[0][0] < 2 * 2 * (side + 3) ** 2


def test_faces_of_several_frames_in_order() -> None:
    """A batch is the same as one face after the other, and of two that overlap the later lies above."""
    frames = torch.from_numpy(np.stack([texture(200, 260, seed) for seed in range(3)]))
    places = [(0, 0.5, (80, 90)), (30, 0.4, (120, 100)), (0, 3.0, (100, 95)), (5, 0.6, (90, 80))]
    maps = torch.from_numpy(np.array([_matrix(*place, 32) for place in places]))
    which = torch.tensor([2, 2, 2, 0], dtype=torch.int32)
    restored = torch.from_numpy(np.stack([texture(32, 32, seed) for seed in range(10, 14)]))
    together, apart, backwards = frames.clone(), frames.clone(), frames.clone()
    counts = paste_faces(together, which, restored, maps)
    single = [
        paste_faces(apart, which[i : i + 1], restored[i : i + 1], maps[i : i + 1]) for i in range(4)
    ]
    assert torch.equal(together, apart)
    assert torch.equal(counts, torch.cat(single))
    assert torch.equal(together[1], frames[1])
    paste_faces(backwards, which.flip(0), restored.flip(0), maps.flip(0))
    assert not torch.equal(together, backwards)
    crops = cut_faces(frames, which, maps, 32)
    for i in range(4):
        assert torch.equal(
            crops[i], cut_faces(frames[which[i]][None], which[:1] * 0, maps[i][None], 32)[0]
        )
    groups = plan.layers(plan.places(frames, which, maps, 32))
    assert [[place.face for place in group] for group in groups] == [[0, 3], [1], [2]]


def test_a_view_is_changed_in_place_and_nothing_around_it() -> None:
    whole = torch.from_numpy(texture(90, 120))[None].repeat(2, 1, 1, 1)
    before = whole.clone()
    view = whole[1:, 10:80, 15:105]
    _, which, maps = _tensors(texture(1, 1), _matrix(12, 0.8, (40, 30), 32))
    restored = torch.from_numpy(texture(32, 32, 5))[None]
    copy = view.clone()
    crops = cut_faces(view, which, maps, 32), cut_faces(copy, which, maps, 32)
    assert torch.equal(*crops)
    paste_faces(view, which, restored, maps)
    paste_faces(copy, which, restored, maps)
    assert torch.equal(view, copy)
    assert not torch.equal(whole, before)
    before[1:, 10:80, 15:105] = copy
    assert torch.equal(whole, before)


def test_blend_and_two_runs() -> None:
    frame, matrix = _picture(), _matrix(-20, 0.4, MIDDLE)
    frames, which, maps = _tensors(frame, matrix)
    restored = torch.from_numpy(texture(SIZE, SIZE, 2))[None]
    none, full, again = frames.clone(), frames.clone(), frames.clone()
    counts = paste_faces(none, which, restored, maps, 0.0)
    assert torch.equal(none, frames)
    assert torch.equal(counts, paste_faces(full, which, restored, maps, 1))
    paste_faces(again, which, restored, maps)
    assert torch.equal(full, again)
    assert not torch.equal(full, frames)


def test_a_large_face_pasted_back_as_it_was_does_not_change() -> None:
    frames, which, maps = _tensors(_picture(), _matrix(17, 0.3, MIDDLE))
    before = frames.clone()
    paste_faces(frames, which, cut_faces(frames, which, maps, SIZE), maps)
    assert torch.equal(frames, before)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, which, maps = _tensors(_picture(), _matrix(17, 0.2, MIDDLE))
    restored = torch.from_numpy(texture(SIZE, SIZE, 2))[None]
    crops, pasted = [cut_faces(frames, which, maps, SIZE)], [frames.clone(), frames.clone()]
    paste_faces(pasted[0], which, restored, maps)
    monkeypatch.setattr(draw, "SAMPLES", 1000)
    monkeypatch.setattr(draw, "AVERAGED_ROWS", 5)
    crops.append(cut_faces(frames, which, maps, SIZE))
    paste_faces(pasted[1], which, restored, maps)
    assert torch.equal(*crops)
    assert torch.equal(*pasted)


def test_operator_contract() -> None:
    frames, which, maps = _tensors(
        texture(30, 40), _matrix(3, 0.8, (20, 14), 16), _matrix(0, 2.5, (9, 9), 16)
    )
    restored = torch.from_numpy(np.stack([texture(16, 16, seed) for seed in (1, 2)]))
    ops = torch.ops.fr_kernels
    check_operator(ops.cut_faces, frames, which, maps, 16, "reference")
    check_operator(ops.paste_faces, frames, which, restored, maps, 0.5, "reference")
    eager, compiled = frames.clone(), frames.clone()
    counts = paste_faces(eager, which, restored, maps, 0.5)
    assert torch.equal(compiles_whole(paste_faces, compiled, which, restored, maps, 0.5), counts)
    assert torch.equal(eager, compiled)
    crops = cut_faces(frames, which, maps, 16)
    assert torch.equal(compiles_whole(cut_faces, frames, which, maps, 16), crops)


def test_no_face() -> None:
    frames, which, maps = _tensors(texture(8, 9))
    assert cut_faces(frames, which, maps).shape == (0, 512, 512, 3)
    assert cut_faces(frames[:0], which, maps, 8).shape == (0, 8, 8, 3)
    none = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    assert paste_faces(frames, which, none, maps).shape == (0, 2)


def test_wrong_calls() -> None:
    frames, which, maps = _tensors(texture(8, 9), _matrix(0, 1, (4, 4)))
    faces = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"frames is torch.float32 .*expected uint8 \[F, H, W, 3\]"
    ):
        cut_faces(frames.float(), which, maps)
    with pytest.raises(ValueError, match=r"which is torch.int64 .*expected int32 \[N\] on the CPU"):
        cut_faces(frames, which.long(), maps)
    with pytest.raises(ValueError, match=r"matrices is torch.float32 .*N = 1"):
        cut_faces(frames, which, maps.float())
    with pytest.raises(ValueError, match="size is 0; expected 1 or more"):
        cut_faces(frames, which, maps, 0)
    with pytest.raises(ValueError, match=r"which is \[1\]; expected frame numbers below 1"):
        cut_faces(frames, which + 1, maps)
    with pytest.raises(ValueError, match="faces need a frame with pixels"):
        cut_faces(frames[:, :0], which, maps)
    for wrong in (maps * 0, maps * float("nan")):
        with pytest.raises(
            ValueError, match="expected finite numbers and a map that can be inverted"
        ):
            cut_faces(frames, which, wrong)
    with pytest.raises(ValueError, match=r"restored is torch.uint8 \(1, 8, 7, 3\); expected uint8"):
        paste_faces(frames, which, faces[:, :, :7], maps)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"blend is .*; expected 0 to 1"):
            paste_faces(frames, which, faces, maps, wrong)


def test_an_explicit_request_never_falls_back() -> None:
    frames, which, maps = _tensors(texture(8, 9), _matrix(0, 1, (4, 4)))
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'cuda'"):
        cut_faces(frames, which, maps, impl="triton")
    with pytest.raises(KernelUnavailableError, match=r"cuda-python is not installed|not on a GPU"):
        cut_faces(frames, which, maps, impl="cuda")
    turned = frames.transpose(1, 2)
    with pytest.raises(KernelUnavailableError, match="a row of `frames` are not contiguous"):
        cut_faces(turned, which, maps, impl="cuda")
    assert torch.equal(cut_faces(turned, which, maps), cut_faces(turned.contiguous(), which, maps))
