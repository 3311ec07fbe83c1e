import os
import signal
import subprocess
import sys

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


SCRIPT = """
import os
seen = os.environ.get("OMP_NUM_THREADS")  # when the script is imported, as numpy reads it

def look():
    return seen

if __name__ == "__main__":
    from defectdiffu.drawn.workers import spread
    print(seen, *spread(look, [(), ()], 2), os.environ.get("OMP_NUM_THREADS"))
"""


@pytest.mark.parametrize("threads", [None, "3"])
def test_numpy_has_one_thread_in_a_worker_even_if_the_script_imports_it(tmp_path, threads):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": threads}
    run = [sys.executable, tmp_path / "script.py"]
    said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(threads), "1", "1", str(threads)]


def test_there_is_a_core():
    assert cores() >= 1
