"""The graph on torch: eagerly, compiled, or as CUDA graphs."""

import logging
from typing import Literal

import torch
from torch import Tensor

from fr_deploy.errors import UsageError
from fr_deploy.models.attend import check_kind
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.backend import OutOfMemoryError
from fr_deploy.runtime.devices import DTYPES, Place
from fr_deploy.runtime.runner import BUCKETS
from fr_kernels.native import obstacle

Mode = Literal["eager", "compile", "graphs"]
MODES = ("eager", "compile", "graphs")
WARMUPS = 3  # before a capture: lazy libraries, cuDNN's choice of algorithms, Triton's compilation
_log = logging.getLogger("fr_deploy")


def compiled_ops(place: Place, mode: Mode = "eager") -> bool:
    """Whether a graph runs fr_kernels' ops there: on a GPU, and eagerly on a CPU in float32 where C++ compiles.

    On a CPU torch.compile fuses more of torch's own than of ours; without a compiler torch's run, and the logger
    `fr_deploy` says why.
    """
    if place.device.type == "cuda":
        return True
    if mode != "eager" or place.dtype != "fp32":
        return False
    if reason := obstacle("conv3x3"):
        _log.info("faces are restored with torch's own operators: %s", reason)
    return not reason


class TorchBackend:
    """`Backend` on torch with fr_kernels' compiled ops, as far as `compiled_ops` finds them."""

    def __init__(
        self,
        graph: RestorationGraph,
        place: Place | None = None,
        mode: Mode = "eager",
        attention: str = "auto",
    ) -> None:
        """Take a graph over; it is moved and rounded in place.

        Args:
            graph: folded, float32.
            place: default: the CPU in float32.
            mode: "graphs" records one CUDA graph for each bucket when it first comes, which removes the gaps between
                launches; a bucket that cannot be recorded runs eagerly, and a warning says why.
            attention: one of `KINDS`, "products" for the heads of more than 256 channels that flash kernels do not
                take; "auto" is torch's own choice for all.

        Raises:
            UsageError: an unknown mode or attention, or CUDA graphs without a GPU.
            ResourceError: xformers is asked for and not installed.
        """
        place = place or Place(torch.device("cpu"), "fp32")
        if mode not in MODES:
            raise UsageError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
        if mode == "graphs" and place.device.type != "cuda":
            raise UsageError(
                f"CUDA graphs need a GPU, not {place.device}; use mode eager or compile"
            )
        self.place, self.mode = place, mode
        self.name = {"eager": "torch-eager", "compile": "torch-compile", "graphs": "torch-graphs"}[
            mode
        ]
        self.device, self.dtype, self.size = place.label, place.dtype, graph.preset.size
        self.limit = BUCKETS[-1]
        graph = graph.to(device=place.device, dtype=DTYPES[place.dtype])
        graph = graph.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.graph = graph.use_kernels(compiled_ops(place, mode)).eval()
        if attention != "auto":
            wide = {"flash": "products", "cudnn": "products"}.get(attention, attention)
            self.graph.use_attention(check_kind(attention), check_kind(wide))
        # One compilation a bucket: a dynamic batch keeps inductor from choosing by shape.
        self._call = torch.compile(self.graph, dynamic=False) if mode == "compile" else self.graph
        self._captured: dict[int, _Captured | None] = {}

    @torch.inference_mode()
    def run(self, faces: Tensor) -> Tensor:
        """As `Backend.run`."""
        try:
            return self._run(faces)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise self._too_much(len(faces)) from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # how torch says it of a CPU
                raise
            raise self._too_much(len(faces)) from error

    def close(self) -> None:
        """As `Backend.close`."""
        self._captured.clear()
        del self._call, self.graph
        if self.place.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_much(self, batch: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"{batch} faces of {self.size} px do not fit into the memory of {self.device}."
        )

    def _run(self, faces: Tensor) -> Tensor:
        if self.place.device.type == "cpu":
            return self._call(faces)
        if self.mode == "graphs":
            captured = self._capture(len(faces))
            if captured is not None:
                return captured(faces)
        return self._call(faces.to(self.place.device, non_blocking=True)).cpu()

    def _capture(self, batch: int) -> "_Captured | None":
        if batch not in self._captured:
            try:
                self._captured[batch] = _Captured(self.graph, batch, self.place.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                _log.warning("no CUDA graph for %d faces, they run eagerly: %s", batch, error)
                self._captured[batch] = None
        return self._captured[batch]


class _Captured:
    """One bucket's launches, recorded once and replayed."""

    def __init__(self, graph: RestorationGraph, batch: int, device: torch.device) -> None:
        size = graph.preset.size
        self.faces = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                graph(self.faces)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.recording):
            self.restored = graph(self.faces)

    def __call__(self, faces: Tensor) -> Tensor:
        self.faces.copy_(faces, non_blocking=True)
        self.recording.replay()
        return self.restored.cpu()
