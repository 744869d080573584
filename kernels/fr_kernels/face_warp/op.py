"""The face warp as operators: schema, fake, public functions. Pixels are uint8, so there is no gradient."""

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.face_warp import plan, reference


@torch.library.custom_op("fr_kernels::cut_faces", mutates_args=())
def _cut(frames: Tensor, which: Tensor, matrices: Tensor, size: int, impl: str) -> Tensor:
    _check_values(frames, which, matrices)
    unfit = _unfit(frames)
    if resolve("cut_faces", impl, (frames,), (Impl.CUDA,), unfit) is Impl.CUDA:
        from fr_kernels.face_warp import cuda_impl

        return cuda_impl.cut_faces(frames, which, matrices, size)
    return reference.cut_faces(frames, which, matrices, size)


@torch.library.custom_op("fr_kernels::paste_faces", mutates_args=("frames",))
def _paste(
    frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor, blend: float, impl: str
) -> Tensor:
    _check_values(frames, which, matrices)
    unfit = _unfit(frames)
    if resolve("paste_faces", impl, (frames, restored), (Impl.CUDA,), unfit) is Impl.CUDA:
        from fr_kernels.face_warp import cuda_impl

        return cuda_impl.paste_faces(frames, which, restored, matrices, blend)
    return reference.paste_faces(frames, which, restored, matrices, blend)


@_cut.register_fake
def _(frames: Tensor, which: Tensor, matrices: Tensor, size: int, impl: str) -> Tensor:
    return frames.new_empty((which.shape[0], size, size, 3))


@_paste.register_fake
def _(
    frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor, blend: float, impl: str
) -> Tensor:
    return torch.empty((which.shape[0], 2), dtype=torch.int64, device=frames.device)


def _cut_launches(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> int:
    return plan.cut_launches(plan.places(frames, which, matrices, size))


def _paste_launches(frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor) -> int:
    faces = plan.places(frames, which, matrices, restored.shape[1])
    return sum(plan.paste_launches(layer) for layer in plan.layers(faces))


declare_launches("cut_faces", _cut_launches)
declare_launches("paste_faces", _paste_launches)
declare_no_products(torch.ops.fr_kernels.cut_faces)
declare_no_products(torch.ops.fr_kernels.paste_faces)


def cut_faces(
    frames: Tensor, which: Tensor, matrices: Tensor, size: int = 512, *, impl: str = "auto"
) -> Tensor:
    """Cut every face of a batch of frames, antialiased where it shrinks (ours; formula: `reference.py`).

    Args:
        frames: uint8 [F, H, W, 3], on any device. An array of another library comes in by
            `torch.from_dlpack` and the result leaves by its `__dlpack__`, without a copy.
        which: int32 [N], the frame of each face; on the CPU.
        matrices: float64 [N, 2, 3], frame -> crop, similarities; on the CPU.
        size: side of the crops.
        impl: "auto", "reference" or "cuda". The CUDA kernels need the pixels of a row to be contiguous.

    Returns:
        uint8 [N, size, size, 3] on the device of `frames`. Implementations differ by at most 1.

    Raises:
        ValueError: a shape, dtype, device, frame number or matrix does not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    _check_tensors(frames, which, matrices)
    if size < 1:
        raise ValueError(f"size is {size}; expected 1 or more")
    return _cut(frames, which, matrices, size, impl)


def paste_faces(
    frames: Tensor,
    which: Tensor,
    restored: Tensor,
    matrices: Tensor,
    blend: float = 1.0,
    *,
    impl: str = "auto",
) -> Tensor:
    """Blend restored faces into their frames, in place and in order (ours; formula: `reference.py`).

    A pixel outside every mask keeps its bytes. Of two faces that overlap the later one lies above.

    Args:
        frames: uint8 [F, H, W, 3], modified; frames must not share memory.
        which: int32 [N], the frame of each face; on the CPU.
        restored: uint8 [N, S, S, 3], what the restorer made of the crops; on the device of `frames`.
        matrices: float64 [N, 2, 3], frame -> crop, as `cut_faces` took them; on the CPU.
        blend: 0 leaves the frame, 1 gives the restored face.
        impl: "auto", "reference" or "cuda". The CUDA kernels need the pixels of a row to be contiguous.

    Returns:
        int64 [N, 2] on the device of `frames`: the frame pixels read for each face (those of the box around it, and
        for one larger than its crop those of a second cut), and those its mask covers, which may have changed. They
        depend on the face, not on the size of the frame.

    Raises:
        ValueError: a shape, dtype, device, frame number or matrix does not fit, or `blend` lies outside 0..1.
        KernelUnavailableError: `impl` cannot run here.
    """
    _check_tensors(frames, which, matrices)
    faces = (which.shape[0], *restored.shape[1:2] * 2, 3)
    if restored.dtype != torch.uint8 or restored.shape != faces or not restored.shape[1]:
        raise ValueError(
            f"restored is {restored.dtype} {tuple(restored.shape)}; expected uint8 [N, S, S, 3], N = {len(which)}"
        )
    if restored.device != frames.device:
        raise ValueError(f"restored is on {restored.device}, frames on {frames.device}")
    if not 0 <= blend <= 1:
        raise ValueError(f"blend is {blend}; expected 0 to 1")
    return _paste(frames, which, restored, matrices, blend, impl)


def _check_tensors(frames: Tensor, which: Tensor, matrices: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"frames is {frames.dtype} {tuple(frames.shape)}; expected uint8 [F, H, W, 3]"
        )
    if which.dtype != torch.int32 or which.ndim != 1 or which.device.type != "cpu":
        raise ValueError(
            f"which is {which.dtype} {tuple(which.shape)} on {which.device}; expected int32 [N] on the CPU"
        )
    fits = matrices.dtype == torch.float64 and matrices.shape == (which.shape[0], 2, 3)
    if not fits or matrices.device.type != "cpu":
        raise ValueError(
            f"matrices is {matrices.dtype} {tuple(matrices.shape)} on {matrices.device}; "
            f"expected float64 [N, 2, 3] on the CPU, N = {which.shape[0]}"
        )


def _check_values(frames: Tensor, which: Tensor, matrices: Tensor) -> None:
    """What only the numbers show: checked inside the operator, so that a compiled graph stays whole."""
    if len(which) and not frames.numel():
        raise ValueError(f"frames is {tuple(frames.shape)}; faces need a frame with pixels")
    if any(not 0 <= frame < len(frames) for frame in which.tolist()):
        raise ValueError(f"which is {which.tolist()}; expected frame numbers below {len(frames)}")
    for matrix in matrices.tolist():
        plan.affine(matrix)


def _unfit(frames: Tensor) -> str:
    """Why the CUDA kernels cannot take these frames; empty when they can."""
    dense = frames.stride(3) == 1 and frames.stride(2) == 3
    return (
        "" if dense or not frames.numel() else "the pixels of a row of `frames` are not contiguous"
    )
