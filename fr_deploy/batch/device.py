"""The middle stage of a run: a device that restores batches of faces, or pretends to."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fr_deploy.batch.guard import GuardedDevice
from fr_deploy.batch.modelfiles import FAKE
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.stage import Stage
from fr_deploy.batch.work import SIDE, Faces, Restored
from fr_deploy.errors import ModelError, UsageError

if TYPE_CHECKING:
    from fr_deploy.bundle import Bundle
    from fr_deploy.pipeline import CropRestorer
    from fr_deploy.restorer import Restorer, SampledRestorer

_FAKE = re.compile(re.escape(FAKE) + r"(\d{1,6}(?:\.\d{1,6})?)ms(?:\+(\d{1,6}(?:\.\d{1,6})?)ms)?")


@dataclass(frozen=True)
class FakeDevice:
    """Takes as long as a device would, and answers the negative of each face.

    It is for planning: with the times of a device that is not there it says how many photos a second this machine's
    cores would feed it, and which stage is the narrow one. It also makes every test of a run repeatable.

    Args:
        base_ms: milliseconds of any batch.
        per_face_ms: and of each face in it.
    """

    base_ms: float
    per_face_ms: float = 0.0

    def setup(self) -> None:
        """Nothing is loaded."""

    def __call__(self, task: Faces) -> Restored:
        """Answer 255 - crops, uint8 of the same shape, when the time is over.

        A core is busy with that for 0.2 ms a face, within the time.
        """
        began = time.perf_counter()
        crops = 255 - task.crops
        wanted = (self.base_ms + len(crops) * self.per_face_ms) / 1e3
        time.sleep(max(0.0, wanted - (time.perf_counter() - began)))
        return Restored(crops, ms=(time.perf_counter() - began) * 1e3)


@dataclass(frozen=True)
class ModelChoice:
    """What a device loads; plain values, so that torch is imported in the device's process alone."""

    model: str = "lafr-mini"
    """Embedded name, bundle folder or hub id."""
    loras: tuple[str, ...] = ()
    """`PATH[:SCALE][:alpha=N]`, fused in this order."""
    engines: Path | None = None
    """A directory that `fr-deploy export` wrote, in place of the model and LoRAs."""
    allow_unverified: bool = False
    trust: Path | None = None
    """Of `engines`, as `fr_deploy.runtime.exported.Exported`."""
    dtype: str = "auto"
    backend: str = "auto"
    attention: str = "auto"
    """As `fr_deploy.runtime.select.Request`."""
    threads: int | None = None
    """CPU threads; default: all cores."""


@dataclass
class ModelDevice:
    """A model on a GPU or CPU, loaded by the rules of `fr-deploy restore`.

    Args:
        choice: the model.
        device: auto, cpu, cuda or cuda:N.
        batch: faces a batch at most; halved by its Runner where memory does not suffice.
        fixed_bucket: as Runner.
    """

    choice: ModelChoice
    device: str = "auto"
    batch: int | None = None
    fixed_bucket: int | None = None
    _restorer: "CropRestorer | None" = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Load the model.

        Raises:
            ModelError, ResourceError, UsageError: as `load_restorer` and `load_exported`.
            ModelError: its faces have another size than the crops of a run.
        """
        if self.choice.threads:
            import torch

            torch.set_num_threads(self.choice.threads)
        restorer = self._loaded()
        if restorer.size != SIDE:
            raise ModelError(
                f"{restorer.name} restores faces of {restorer.size} px; serve-batch cuts out {SIDE} px: "
                "choose another --model"
            )
        self._restorer = restorer

    def __call__(self, task: Faces) -> Restored:
        """Restore a batch, uint8 [N, 512, 512, 3]; the answer has its shape.

        Raises:
            ResourceError: not even one face fits into memory.
        """
        assert self._restorer is not None
        began = time.perf_counter()
        crops = self._restorer(task.crops)
        return Restored(crops, ms=(time.perf_counter() - began) * 1e3)

    def _loaded(self) -> "Restorer | SampledRestorer":
        from fr_deploy.restorer import load_exported, load_restorer
        from fr_deploy.runtime.exported import Exported
        from fr_deploy.runtime.select import Request

        choice, batch, fixed = self.choice, self.batch, self.fixed_bucket
        request = Request(
            self.device, choice.dtype, choice.backend, choice.attention, threads=choice.threads
        )
        if choice.engines is not None:
            exported = Exported(choice.engines, choice.allow_unverified, choice.trust)
            return load_exported(exported, request=request, batch=batch, fixed_bucket=fixed)
        return load_restorer(self._source(), request=request, batch=batch, fixed_bucket=fixed)

    def _source(self) -> "str | Bundle":
        if not self.choice.loras:
            return self.choice.model
        from fr_deploy.bundle import read_bundle
        from fr_deploy.models.lora import parse_lora

        return read_bundle(
            self.choice.model, loras=[parse_lora(text) for text in self.choice.loras]
        )


def device_stages(names: Sequence[str], choice: ModelChoice, plan: Plan, pace: Pace) -> list[Stage]:
    """One stage for each device, with the identity guard around it if the plan or the pace asks for it.

    Args:
        names: `auto`, `cpu`, `cuda`, `cuda:N` or N alone; or a fake one for each (`parse_fake`).
        choice: the model that all of them load.
        plan: `fixed_bucket` and `max_identity_angle` of it.
        pace: `batch` and `measure_identity` of it.

    Raises:
        UsageError: no device, an unknown name, fake ones among others, or a GPU named twice.
    """
    fakes = [name.startswith(FAKE) for name in names]
    if not names or any(fakes) != all(fakes):
        raise UsageError(f"devices are {', '.join(names) or 'none'}; name GPUs, or fake ones alone")
    if any(fakes):
        stages: list[Stage] = [parse_fake(name) for name in names]
    else:
        stages = [
            ModelDevice(choice, name, pace.batch, plan.fixed_bucket) for name in _torch_names(names)
        ]
    if plan.max_identity_angle is None and not pace.measure_identity:
        return stages
    alone = plan.fixed_bucket is not None
    return [
        GuardedDevice(stage, plan.max_identity_angle, embed_on(stage), one_by_one=alone)
        for stage in stages
    ]


def parse_fake(name: str) -> FakeDevice:
    """The device that `fake:6ms+1.5ms` names: 6 ms a batch and 1.5 ms a face; the second part may be left out.

    Raises:
        UsageError: another form.
    """
    found = _FAKE.fullmatch(name)
    if found is None:
        raise UsageError(
            f"device is {name!r}; a fake one is written as fake:BASEms+PER_FACEms, such as fake:6ms+1.5ms"
        )
    return FakeDevice(float(found[1]), float(found[2] or 0))


def embed_on(stage: Stage) -> str:
    """Where the embedder of a device computes: on the same GPU; on the CPU beside a fake one."""
    return stage.device if isinstance(stage, ModelDevice) else "cpu"


def _torch_names(names: Sequence[str]) -> list[str]:
    found = [f"cuda:{name}" if name.isdigit() else name for name in names]
    for name in found:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
            raise UsageError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N, N, fake:...")
    places = ["cuda:0" if name == "cuda" else name for name in found]
    if len(set(places)) < len(places):
        raise UsageError(f"devices are {', '.join(names)}; name each once")
    return found
