"""`make gpu-suite PART=kernels|pipeline|compile`: all that only a GPU can prove, the most valuable first.

    python -m fr_bench.gpu_suite [kernels pipeline compile] [--minutes 8.5] [--rehearse] [--again] [-o DIR]

Every step is a command of its own with its own time limit; its outcome is written as soon as it ends, so whatever
stops the suite, the next call goes on behind it. A part takes less than nine minutes. `--rehearse` runs the same
steps at tiny sizes on a CPU, where whatever needs a GPU says so and is skipped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from fr_bench.machine import this_machine
from fr_bench.verification import Outcome, write_section

RESULTS = "gpu-suite.jsonl"
PARTS = ("kernels", "pipeline", "compile")


@dataclass(frozen=True)
class Step:
    """One command; "{out}" in it is the folder of the results."""

    part: str
    name: str
    proves: str
    seconds: int
    """At most; a step that has less left is not started."""
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    """The same in seconds on a CPU."""


def _pytest(*arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *arguments)


def _deploy(*arguments: str) -> tuple[str, ...]:
    return ("-m", "fr_deploy", *arguments, "-o", "{out}")


def _pipeline(*arguments: str) -> tuple[str, ...]:
    return _deploy("bench", "pipeline", *arguments)


_TINY = (
    "--model",
    "lafr-toy",
    "--device",
    "cpu",
    "--repeats",
    "3",
    "--without",
    "diffusers compile",
)
_NO_COMPILE = ("--without", "diffusers compile", "--without", "folded, compile")
_FULL = ("--model", "lafr-sd21", "--device", "cuda", "--dtype", "fp16")
STEPS = (
    Step("kernels", "kernel tests", "every op at every shape, forward and gradients, within the error budget",
         240, _pytest("tests/test_kernels_gpu.py", "tests/test_kernels_face_warp_cuda.py"),
         _pytest("tests/test_kernels_gpu.py", "tests/test_kernels_face_warp_cuda.py")),
    Step("kernels", "kernel bench", "speed of every op against eager code and attention libraries",
         240, _deploy("bench", "kernels", "--peer", "eager", "--peer", "sdpa", "--dtype", "fp16", "--dtype", "uint8"),
         _deploy("bench", "kernels", "--op", "phase_shuffle", "--dtype", "fp32")),
    Step("kernels", "convolutions", "cuDNN's share of the matrix rate at the shapes that carry the FLOPs",
         90, ("-m", "fr_bench.conv_shapes", "-o", "{out}"),
         ("-m", "fr_bench.conv_shapes", "--device", "cpu", "--scale", "32", "-o", "{out}")),
    Step("kernels", "tuning", "launch settings measured on this GPU",
         300, ("-m", "fr_kernels.tune", "-o", "{out}"), ("-m", "fr_bench.tuning_rehearsal", "-o", "{out}")),
    Step("pipeline", "runtime tests", "CUDA graphs, memory that does not suffice, batch invariance",
         150, _pytest("tests/test_runtime_gpu.py"), _pytest("tests/test_runtime_gpu.py")),
    Step("pipeline", "full size, batch 1 and 8", "the whole restoration at full size against diffusers",
         240, _pipeline(*_FULL, "--batch", "1", "--batch", "8", *_NO_COMPILE),
         _pipeline(*_TINY, "--batch", "1", "--batch", "2")),
    Step("pipeline", "full size, other batches", "throughput by batch",
         240, _pipeline(*_FULL, "--batch", "2", "--batch", "4", "--batch", "16", "--batch", "32", *_NO_COMPILE),
         _pipeline(*_TINY, "--batch", "4")),
    Step("pipeline", "lafr-mini", "the embedded model on a GPU",
         120, _pipeline("--device", "cuda", "--batch", "1", "--batch", "32", *_NO_COMPILE),
         _pipeline(*_TINY, "--batch", "1")),
    Step("compile", "max-autotune, batch 1", "against torch.compile max-autotune",
         500, _pipeline(*_FULL, "--batch", "1"), _pipeline(*_TINY)),
    Step("compile", "max-autotune, batch 8", "against torch.compile max-autotune",
         500, _pipeline(*_FULL, "--batch", "8"), _pipeline(*_TINY)),
)  # fmt: skip


def run_suite(
    parts: Sequence[str], out: Path, *, minutes: float, rehearse: bool, again: bool
) -> list[Outcome]:
    """Run the steps of some parts that have not passed yet on this device at this commit.

    Args:
        parts: of `PARTS`.
        out: folder of all results; outcomes go to `gpu-suite.jsonl` in it.
        minutes: no step is started that could last longer than what is left of them.
        rehearse: the tiny forms, on a CPU.
        again: run what has passed, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if rehearse else torch.cuda.get_device_name()
    machine, until = this_machine(), time.monotonic() + 60 * minutes
    passed = {
        (o.part, o.name) for o in read_outcomes(out)
        if o.passed and o.commit == machine.commit and o.device == device
    }  # fmt: skip
    done: list[Outcome] = []
    for step in (s for s in STEPS if s.part in parts):
        left = until - time.monotonic()
        if not again and (step.part, step.name) in passed:
            print(f"{step.part}: {step.name}: passed before")
        elif left < min(step.seconds, 60):
            print(f"{step.part}: {step.name}: not started, {left:.0f} s are left")
        else:
            done.append(_run(step, out, min(left, step.seconds), rehearse, device, machine.commit))
    return done


def read_outcomes(out: Path) -> list[Outcome]:
    """All outcomes kept in a folder of results, the oldest first."""
    path = out / RESULTS
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def _run(step: Step, out: Path, limit: float, rehearse: bool, device: str, commit: str) -> Outcome:
    import triton

    chosen = step.rehearsal if rehearse else step.command
    command = [sys.executable, *(part.replace("{out}", str(out)) for part in chosen)]
    print(f"{step.part}: {step.name}: {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit, check=False,
            env=_environment(rehearse),
        )  # fmt: skip
        passed, printed = ended.returncode == 0, ended.stdout
    except subprocess.TimeoutExpired as late:
        # Bytes, whatever `text` says (python/cpython issue 87597).
        kept = late.stdout.decode() if isinstance(late.stdout, bytes) else ""
        passed, printed = False, f"{kept}\nstopped after {limit:.0f} s"
    outcome = Outcome(
        part=step.part,
        name=step.name,
        proves=step.proves,
        passed=passed,
        seconds=round(time.monotonic() - start, 1),
        rehearsed=rehearse,
        device=device,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        torch=torch.__version__,
        triton=triton.__version__,
        tail="\n".join(printed.splitlines()[-12:])[-4000:],
    )
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")
    print(
        f"  {'passed' if passed else 'FAILED'} in {outcome.seconds} s\n{outcome.tail}", flush=True
    )
    return outcome


def _environment(rehearse: bool) -> dict[str, str]:
    """With our packages on the path where they are not installed; a rehearsal sees no GPU and interprets Triton."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    tiny = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if rehearse else {}
    return os.environ | {"PYTHONPATH": path} | tiny


def main() -> None:
    """Run parts; exits 1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    if not given.rehearse and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; what a CPU can run of it: make gpu-suite REHEARSE=1")
    done = run_suite(
        given.parts, given.output, minutes=given.minutes, rehearse=given.rehearse, again=given.again
    )
    if not given.rehearse:
        write_section(Path("docs/verification.md"), read_outcomes(given.output))
    failed = [f"{o.part}: {o.name}" for o in done if not o.passed]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
