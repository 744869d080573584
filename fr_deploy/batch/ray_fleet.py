"""The actors of a run: one for each GPU, or one on each node, started and asked without any of Ray's own retries."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fr_deploy.batch.ray_actor import RayActor
from fr_deploy.batch.ray_job import Errand, Job, Report
from fr_deploy.errors import ResourceError

_START_SECONDS = 120.0
"""From asking for an actor to its first word: a process of Python, and the imports of Ray and the engine."""
_SILENT_SECONDS = 60.0
"""An actor answers twice a second; one that does not so long is gone, or stopped."""
_CALL_SECONDS = 0.2
_FETCH_SECONDS = 30.0
_LOOK_SECONDS = 2.0
"""How often it is looked whether nodes came or went."""


class RayMember:
    """One actor."""

    def __init__(self, handle: Any, node: str) -> None:
        """Ask it for its first word.

        Args:
            handle: Ray's.
            node: its id, or empty if Ray chose it.
        """
        self.held: set[int] = set()
        self.report: Report | None = None
        self.node = node
        self.handle = handle
        self.call([])

    @property
    def name(self) -> str:
        """Of its machine, as far as it is known."""
        return (
            self.report.host if self.report else f"node {self.node[:8]}" if self.node else "a GPU"
        )

    def call(self, errands: list[Errand]) -> None:
        """Send photos; its answer comes by `RayFleet.poll`."""
        self.since = time.monotonic()
        self.answer: Any = self.handle.exchange.remote(errands, _CALL_SECONDS)


class RayFleet:
    """All actors of a run.

    Args:
        ray: the module, connected.
        device: `auto`, `cuda`, `cpu`, or a fake one.

    Raises:
        ResourceError: the cluster cannot hold one actor.
    """

    def __init__(self, ray: Any, device: str) -> None:
        self.members: list[RayMember] = []
        self._ray = ray
        self._looked = 0.0
        self._nodes = self._alive()
        gpus = sum(self._nodes.values())
        if not self._nodes:
            raise ResourceError("the Ray cluster has no node; begin one with: ray start")
        self._on_gpus = device == "cuda" or (device == "auto" and gpus > 0)
        self._device = "cuda:0" if self._on_gpus else "cpu" if device == "auto" else device
        if self._on_gpus:
            free = ray.available_resources().get("GPU", 0)
            if free < 1:
                raise ResourceError(
                    f"{gpus} GPUs are in the Ray cluster and {free:g} of them are free; one is needed. "
                    "Wait, or name another device: --device cpu"
                )

    def tend(self, job: Job) -> None:
        """Start an actor for each place that has none."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked, self._nodes = now, self._alive()
        if self._on_gpus:
            for _ in range(sum(self._nodes.values()) - len(self.members)):
                self._start(job, "", max(self._nodes.values()))
            return
        taken = {member.node for member in self.members}
        for node in self._nodes.keys() - taken:
            self._start(job, node, 1)

    def poll(self, seconds: float) -> Iterator[tuple[RayMember, Report | str]]:
        """Reports, or how an actor ended, as they come; each is free for a call then.

        Args:
            seconds: to wait at most.
        """
        waiting = {member.answer: member for member in self.members}
        if not waiting:
            time.sleep(seconds)
            return
        answers = list(waiting)
        self._ray.wait(answers, num_returns=1, timeout=seconds)
        ready, late = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        now = time.monotonic()
        for answer in ready:
            yield waiting[answer], self._read(waiting[answer])
        for answer in late:
            member = waiting[answer]
            limit = _SILENT_SECONDS if member.report else _START_SECONDS
            if member in self.members and now - member.since > limit:
                yield member, f"gave no answer in {limit:g} s"

    def end(self, members: Iterable[Any]) -> None:
        """End actors at once."""
        for member in members:
            self.members.remove(member)
            with suppress(Exception):  # it has ended by itself, or its node has
                self._ray.kill(member.handle)
        self._looked = 0.0

    def _read(self, member: RayMember) -> Report | str:
        try:
            report: Report = self._ray.get(member.answer, timeout=_FETCH_SECONDS)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return (
                f"ended: {type(error).__name__}: {lines[-1 if member.report is None else 0][:300]}"
            )
        member.report = report
        return report

    def _start(self, job: Job, node: str, share: int) -> None:
        how: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
        if node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            how["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        else:
            how["num_gpus"] = 1
        ask = job.ask.changed({"devices": (self._device,)})
        actor = self._ray.remote(**how)(RayActor)
        handle = actor.remote(replace(job, ask=ask, share=share))
        self.members.append(RayMember(handle, node))

    def _alive(self) -> dict[str, int]:
        """Whole GPUs of each node that lives."""
        return {
            node["NodeID"]: int(node["Resources"].get("GPU", 0))
            for node in self._ray.nodes()
            if node["Alive"]
        }
