import os
import signal

import pytest

from defectdiffu.drawn.workers import cores, spread
from defectdiffu.errors import InputError


def square(x: int) -> tuple[int, int]:
    if x < 0:
        raise InputError(f"{x} is negative")
    if x == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x, os.getpid()


def test_results_come_in_order_from_one_process_or_two():
    tasks = [(x,) for x in range(12)]
    for workers in (1, 2):
        values, processes = zip(*spread(square, tasks, workers), strict=True)
        assert list(values) == [x * x for x in range(12)]
        assert (os.getpid() in processes) == (workers == 1)


@pytest.mark.parametrize(("task", "message"), [(-1, "-1 is negative"), (13, "a worker was killed: run the same again")])
def test_what_goes_wrong_in_a_worker_is_raised_here(task, message):
    with pytest.raises(InputError, match=message):
        list(spread(square, [(1,), (task,), (2,)], workers=2))


def test_there_is_a_core():
    assert cores() >= 1
