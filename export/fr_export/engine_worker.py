"""The process that builds one engine: TensorRT aborts on what it cannot take, and its peak memory is to be its own."""

import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fr_export.engine_calls import Job, RefusedError, UnreadableError, build


def peak_memory() -> int:
    """Most bytes this process had in memory. (`ru_maxrss` would start with the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(job_text: str, events_fd: int, plan_fd: int) -> int:
    """Run the job of a JSON text; events go to one descriptor, a JSON line each, the engine to the other."""
    given = json.loads(job_text)
    job = Job(**given | {"batches": tuple(map(tuple, given["batches"]))})
    events = os.fdopen(events_fd, "w", buffering=1)

    def emit(event: Mapping[str, Any]) -> None:
        events.write(json.dumps({**event, "peak": peak_memory()}) + "\n")

    try:
        with os.fdopen(plan_fd, "wb", closefd=False) as plan_file:
            built = build(import_module(job.module), job, emit, plan_file)
    except OSError as error:
        emit({"event": "failed", "text": str(error), "errno": error.errno, "complete": True})
    except Exception as error:
        text = str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
        complete = isinstance(error, UnreadableError)
        emit({"event": "failed", "text": text, "errno": None, "complete": complete})
    else:
        emit({"event": "built", **built})
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
