"""`serve-batch` on this machine's processes: killed a hundred times, and fifty thousand photos in steady memory."""

import random
import time
from pathlib import Path
from typing import Any

from fr_bench.killing import family
from fr_bench.soak_runs import Run, compare, kill_again_and_again, make_photos
from fr_deploy.batch.folder import state_folder
from fr_deploy.errors import FrDeployError

_LOOKS, _PAUSE_S = 40, 0.02


def group_kills(folder: Path, *, items: int, kills: int) -> dict[str, Any]:
    """SIGKILL to the process group of a run, up to half a second after each start's first record.

    Args:
        folder: empty; takes photos and results.
        items: photos.
        kills: how many.

    Returns:
        Figures.

    Raises:
        FrDeployError: something was lost, done twice, torn, or differs from a run that was not killed.
    """
    began = time.monotonic()
    source, out = make_photos(folder / "in", items), folder / "out"
    kill_again_and_again(source, out, kills=kills, chance=random.Random(3))
    compare(source, out, folder / "whole", items)
    seconds = round(time.monotonic() - began, 1)
    return {"items": items, "group_kills": kills, "seconds": seconds}


def memory(folder: Path, *, items: int) -> dict[str, Any]:
    """Resident memory of a run's processes after a thousand photos, and near its end.

    Args, Returns: as `group_kills`.

    Raises:
        FrDeployError: it grew by 5 % or more.
    """
    source, out = make_photos(folder / "in", items), folder / "out"
    sizes: dict[int, int] = {}
    lines = _Growing(state_folder(out) / "ledger.jsonl")
    # Faces one by one: with batches of 16 the device's process has 41 to 113 MB, by how many are in it.
    with Run(source, out, "--batch", "1", device="fake:1ms") as run:
        for count in (1000, items * 9 // 10):
            run.wait(lambda n=count: lines.count() >= n, f"{count} records", patience_s=3600)
            sizes[count] = _resident(run.process.pid)
        run.end()
    first, last = sizes.values()
    if last >= 1.05 * first:
        raise FrDeployError(f"memory grew by {last / first - 1:.1%}: bytes at each count {sizes}")
    return {"items": items, "bytes": sizes, "growth": round(last / first - 1, 4)}


class _Growing:
    """Lines of a file that is appended to, each byte read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._lines = path, 0, 0

    def count(self) -> int:
        """Lines by now."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
            self._read += len(data)
            self._lines += data.count(b"\n")
        return self._lines


def _resident(pid: int) -> int:
    """Bytes of a process and all below it, each at the least of many looks: without what passes through."""
    looks: list[dict[int, int]] = []
    for _ in range(_LOOKS):
        looks.append({each: size for each in family(pid) if (size := _rss(each))})
        time.sleep(_PAUSE_S)
    return sum(min(look.get(each, size) for look in looks) for each, size in looks[0].items())


def _rss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
