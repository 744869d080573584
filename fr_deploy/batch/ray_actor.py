"""What runs in an actor: the embedded engine with its own children, fed over Ray and asked for records.

Ray is not imported here. The actor's calls are short: each brings photos and takes what has come to its end meanwhile,
so that an actor which answers is alive, and one which does not is not.
"""

import os
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

import fr_deploy
from fr_deploy.batch.engine import Done, Engine
from fr_deploy.batch.item import Item
from fr_deploy.batch.ray_job import Errand, Job, Report
from fr_deploy.errors import FrDeployError, ModelError, ResourceError

_THREADS = "OMP_NUM_THREADS"
_LINGER_SECONDS = 0.02
"""After a first outcome others follow: fewer calls carry more of them."""


class RayActor:
    """One engine, its photos and its outcomes."""

    def __init__(self, job: Job) -> None:
        """Begin to set up; `exchange` tells when that is over, or what came in between."""
        self._job = job
        self._host = socket.gethostname()
        self._feed: deque[Errand] = deque()
        self._done: queue.Queue[Done] = queue.Queue()
        self._lines: list[str] = []
        self._error: tuple[str, str] | None = None
        self._capacity = 0
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def exchange(self, errands: list[Errand], seconds: float) -> Report:
        """Take photos and give outcomes.

        Args:
            errands: more photos.
            seconds: to wait at most for a first outcome.
        """
        self._feed.extend(errands)
        done: list[Done] = []
        end = time.monotonic() + seconds
        while (wait := end - time.monotonic()) > 0:
            try:
                done.append(self._done.get(timeout=wait))
            except queue.Empty:
                break
            end = min(end, time.monotonic() + _LINGER_SECONDS)
        lines, self._lines = self._lines, []
        report = Report(self._host, done, self._capacity, lines=lines, error=self._error)
        if self._engine is not None:
            report.stats = self._engine.stats
        return report

    def _work(self) -> None:
        try:
            _be_like_any_process(self._job.threads)
            check_surroundings(self._job, self._host)
            self._run()
        except FrDeployError as error:
            self._error = type(error).__name__, f"{self._host}: {error}"
        except BaseException as error:
            self._error = "", f"{self._host}: {type(error).__name__}: {error}"

    def _run(self) -> None:
        from fr_deploy.batch.run import pace_of, stages_of

        job = self._job
        ask = job.ask
        if job.share > 1:
            cores = max(1, len(os.sched_getaffinity(0)) // job.share)
            processes = {
                "preparers": ask.preparers or cores,
                "finishers": ask.finishers or max(2, cores // 2),
            }
            ask = ask.changed(processes)
        pace = pace_of(ask, job.destination, job.part_folder)
        self._engine = Engine(stages_of(ask, job.plan, pace), pace, self._tell)
        # A batch more than the engine begins, so that it need not wait for the next call.
        self._engine.run(self._items(pace.in_flight + pace.batch), self._done.put)

    def _tell(self, text: str) -> None:
        self._lines.append(f"{self._host}: {text}")

    def _items(self, capacity: int) -> Iterator[tuple[Item, bool] | None]:
        """Never ends; asked first when every child is set up."""
        self._capacity = capacity
        while True:
            try:
                errand = self._feed.popleft()
            except IndexError:
                yield None
            else:
                yield errand.item, errand.alone


def check_surroundings(job: Job, host: str) -> None:
    """See that an actor works on the same disk with the same program.

    Raises:
        ModelError: it has another version of fr-deploy.
        ResourceError: it does not see the destination, or a source.
    """
    if fr_deploy.__version__ != job.version:
        raise ModelError(
            f"fr-deploy is {fr_deploy.__version__} there and {job.version} here; install one on all nodes"
        )
    try:
        same = job.probe.read_text() == job.secret
    except OSError:
        same = False
    if not same:
        raise ResourceError(
            f"{job.part_folder} is not the same folder there; every node must see DST at this path, "
            "as on a network file system. Without one use --shard i/N"
        )
    for source in job.sources:
        if not os.path.exists(source):
            raise ResourceError(f"{source} is not there; every node must see SRC at the same path")


def _be_like_any_process(threads: str | None) -> None:
    """Undo what would make the engine's children others than they are without Ray.

    Args:
        threads: OMP_NUM_THREADS where the run was begun.
    """
    # Children of multiprocessing load the main module anew, which is Ray's worker: 0.7 s and 60 MB each.
    main = sys.modules["__main__"]
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
    # Ray sets 1 for an actor that asks for no CPU: a model on the CPU would take one core of many.
    if threads is not None:
        os.environ[_THREADS] = threads
    else:
        os.environ.pop(_THREADS, None)
