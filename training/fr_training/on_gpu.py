"""Train the embedded model on a GPU that is there for minutes: faces, training and the bundle in one command.

    python -m fr_training.on_gpu -o OUT --minutes 7

Faces are generated on the GPU, then the stage `finish` goes on from a bundle, by time instead of images. OUT takes
`lafr-mini.tar`, the bundle in float16 (14 MiB): the weights' average, which is all that the next machine needs, where
the optimiser begins anew with `--start OUT/lafr-mini.tar`. On the same machine the same command goes on where it was
stopped. `--rehearse` does the same at toy size on a CPU.
"""

import argparse
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from fr_deploy.bundle import save_bundle
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_training.faces import SHARD, make_corpus
from fr_training.loop import RunOptions, fit, last_weights, load_model, recipe_for

BATCH = 16
ADVERSARIAL = 0.005  # what `polish` has; 0.02 printed a grid
LOG = "log.jsonl"
DEFAULT = "lafr-mini"


def train_on_gpu(
    work: Path, out: Path, *, start: str, minutes: float, faces: int, lr: float, rehearse: bool
) -> Path:
    """Generate faces, train, and write the bundle as one file.

    Args:
        work: takes the faces and the run; big, and not needed afterwards.
        out: takes `NAME.tar` and `log.jsonl`.
        start: embedded name, bundle folder, or a file that this wrote before.
        minutes: of training, over all calls with the same `work`.
        faces: how many are generated, rounded up to shards of 64.
        lr: peak of the rate.
        rehearse: the toy model at 64 px, in float32 on a CPU.

    Returns:
        The tar file.
    """
    preset, size, device = ("lafr-toy", 64, "cpu") if rehearse else ("lafr-mini", 512, "cuda")
    out.mkdir(parents=True, exist_ok=True)
    make_corpus(work / "faces", faces, size=size, batch=4 if rehearse else 32, device=device)
    recipe = replace(recipe_for(preset, "finish"), lr=lr, adversarial=ADVERSARIAL)
    recipe = recipe if rehearse else replace(recipe, batch=BATCH, ema=0.999)
    options = RunOptions(
        work / "faces",
        work,
        _toy(work / "toy") if rehearse and start == DEFAULT else _unpacked(start, work / "start"),
        device,
        log_every=1 if rehearse else 2000,
        workers=os.cpu_count() or 1,
        minutes=minutes,
    )
    fit(recipe, options)
    model = LafrModel(PRESETS[preset])
    load_model(model, last_weights(work))
    (out / LOG).write_bytes((work / "finish" / LOG).read_bytes())
    return _packed(model, out / f"{preset}.tar")


def _toy(folder: Path) -> str:
    save_bundle(LafrModel(PRESETS["lafr-toy"]), folder)
    return str(folder)


def _unpacked(start: str, folder: Path) -> str:
    if not start.endswith(".tar"):
        return start
    with tarfile.open(start) as tar:
        tar.extractall(folder, filter="data")
    return str(folder)


def _packed(model: LafrModel, path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_bundle(model, Path(folder) / "bundle", dtype=torch.float16)
        part = path.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            tar.add(Path(folder) / "bundle", ".")
    part.replace(path)
    return path


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/on-gpu"))
    parser.add_argument("--start", default=DEFAULT)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--faces", type=int, default=16_384)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    made = train_on_gpu(
        given.work,
        given.output,
        start=given.start,
        minutes=given.minutes,
        faces=SHARD if given.rehearse else given.faces,
        lr=given.lr,
        rehearse=given.rehearse,
    )
    print(f"{made}, {made.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
