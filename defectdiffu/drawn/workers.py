"""The same work on many tasks, by one process per core."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from defectdiffu.errors import InputError


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[..., Any], tasks: Sequence[tuple], workers: int) -> Iterator[Any]:
    """Yield work(*task) of every task, in their order; with one worker all is done in this process.

    `work` must be a function of a module, as every worker imports it. Workers are new processes, so a script that asks
    for several needs `if __name__ == "__main__":`. They end with this process, even if it is killed. Raises what `work`
    raises, and `InputError` if a worker was killed.
    """
    if workers == 1:
        yield from (work(*task) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    running: deque[Future] = deque()
    try:
        for task in tasks:
            running.append(_submit(pool, work, task))
            if len(running) == 4 * workers:  # enough to keep all busy
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        cure = "run the same again, with fewer workers if there is too little memory"
        raise InputError(f"a worker was killed: {cure}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, work: Callable[..., Any], task: tuple) -> Future:
    """Submit a task; a worker that starts here inherits one thread for numpy, and not to react to Ctrl-C.

    numpy's threads would compete with the other workers, and numpy reads their number when it is imported, which may be
    the first thing a worker does: it imports the caller's script. Ctrl-C reaches every process of a terminal.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    blocks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else None
    try:
        return pool.submit(work, *task)
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _begin() -> None:
    """What a worker does before its first task."""
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
