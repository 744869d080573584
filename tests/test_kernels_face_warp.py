"""face_warp: what it costs, in what order, and what it refuses; its numbers: test_kernels_face_warp_formula.py."""

import numpy as np
import pytest
import torch

from face_warp_oracle import MIDDLE, SIZE, matrix_of, picture, tensors
from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.face_warp import draw, plan
from fr_kernels.face_warp.op import cut_faces, paste_faces
from kernel_checks import check_operator, compiles_whole
from scenes import face_crop, texture


@pytest.mark.parametrize("scale", [0.3, 2.5])
def test_cost_does_not_grow_with_the_frame(scale: float) -> None:
    """The same face in 1 and in 24 megapixels: as many pixels read and written, and no other pixel is read."""
    small = picture()
    restored = torch.from_numpy(face_crop("p009-selfie")[None, ::8, ::8].copy())
    results: list[tuple[list[list[int]], torch.Tensor, torch.Tensor]] = []
    for height, width, left, top, around in (
        (1000, 1000, 20, 10, 0),
        (4000, 6000, 4520, 2410, 255),
    ):
        frame = torch.full((1, height, width, 3), around, dtype=torch.uint8)
        view = frame[0, top : top + 345, left : left + 410]
        view.copy_(torch.from_numpy(small))
        matrix = matrix_of(25, scale, (left + 205.0, top + 170.0), 64)
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
    maps = torch.from_numpy(np.array([matrix_of(*place, 32) for place in places]))
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
    _, which, maps = tensors(texture(1, 1), matrix_of(12, 0.8, (40, 30), 32))
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


def test_arrays_of_other_libraries_come_in_and_leave_without_a_copy() -> None:
    """By DLPack: numpy's frames are changed in place, and numpy reads the crops where torch wrote them."""
    array = picture()[None].copy()
    expected, which, maps = tensors(array[0], matrix_of(12, 0.8, MIDDLE))
    frames = torch.from_dlpack(array)
    crops = cut_faces(frames, which, maps, SIZE)
    assert np.from_dlpack(crops).ctypes.data == crops.data_ptr()
    restored = torch.from_dlpack(texture(SIZE, SIZE, 5)[None].copy())
    paste_faces(frames, which, restored, maps)
    paste_faces(expected, which, restored, maps)
    np.testing.assert_array_equal(array, expected.numpy())
    assert (array[0] != picture()).any()


def test_blend_and_two_runs() -> None:
    frame, matrix = picture(), matrix_of(-20, 0.4, MIDDLE)
    frames, which, maps = tensors(frame, matrix)
    restored = torch.from_numpy(texture(SIZE, SIZE, 2))[None]
    none, full, again = frames.clone(), frames.clone(), frames.clone()
    counts = paste_faces(none, which, restored, maps, 0.0)
    assert torch.equal(none, frames)
    assert torch.equal(counts, paste_faces(full, which, restored, maps, 1))
    paste_faces(again, which, restored, maps)
    assert torch.equal(full, again)
    assert not torch.equal(full, frames)


def test_a_large_face_pasted_back_as_it_was_does_not_change() -> None:
    frames, which, maps = tensors(picture(), matrix_of(17, 0.3, MIDDLE))
    before = frames.clone()
    paste_faces(frames, which, cut_faces(frames, which, maps, SIZE), maps)
    assert torch.equal(frames, before)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, which, maps = tensors(picture(), matrix_of(17, 0.2, MIDDLE))
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
    frames, which, maps = tensors(
        texture(30, 40), matrix_of(3, 0.8, (20, 14), 16), matrix_of(0, 2.5, (9, 9), 16)
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
    frames, which, maps = tensors(texture(8, 9))
    assert cut_faces(frames, which, maps).shape == (0, 512, 512, 3)
    assert cut_faces(frames[:0], which, maps, 8).shape == (0, 8, 8, 3)
    none = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    assert paste_faces(frames, which, none, maps).shape == (0, 2)


def test_wrong_calls() -> None:
    frames, which, maps = tensors(texture(8, 9), matrix_of(0, 1, (4, 4)))
    faces = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"frames is torch.float32 .*expected uint8 \[F, H, W, 3\]"
    ):
        cut_faces(frames.float(), which, maps)
    for grey in (frames[..., 0], frames[..., :1]):
        with pytest.raises(
            ValueError, match=r"frames is torch.uint8 .*expected uint8 \[F, H, W, 3\]"
        ):
            paste_faces(grey, which, faces, maps)
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
    frames, which, maps = tensors(texture(8, 9), matrix_of(0, 1, (4, 4)))
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'cuda'"):
        cut_faces(frames, which, maps, impl="triton")
    with pytest.raises(KernelUnavailableError, match=r"cuda-python is not installed|not on a GPU"):
        cut_faces(frames, which, maps, impl="cuda")
    turned = frames.transpose(1, 2)
    with pytest.raises(KernelUnavailableError, match="a row of `frames` are not contiguous"):
        cut_faces(turned, which, maps, impl="cuda")
    assert torch.equal(cut_faces(turned, which, maps), cut_faces(turned.contiguous(), which, maps))
