"""The lock between processes."""

import subprocess
import sys
import threading
import time

import pytest

from triptych.measure import timing_lock as public
from triptych.measure.timing_lock import timing_lock

# The file is loaded by itself: the package would import torch.
CHILD = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("timing_lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
say = lambda line: print(line, flush=True)
with module.timing_lock(sys.argv[2] == "exclusive", report=say, folder=Path(sys.argv[3])):
    say("in")
    sys.stdin.readline()
say("out")
"""


class Other:
    """Another process that takes the lock and holds it until it is let go."""

    def __init__(self, kind, folder):
        path = sys.modules[timing_lock.__module__].__file__
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, kind, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def let_go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def others(tmp_path):
    made = []

    def start(kind):
        made.append(Other(kind, tmp_path))
        return made[-1]

    yield start
    for other in made:
        other.process.kill()
        other.process.communicate()


MEASURING = "measuring waits until nothing else trains or is measured"
TRAINING = "training waits until a measurement is over"


def test_two_trainings_go_together(others):
    first, second = others("shared"), others("shared")
    assert first.line() == second.line() == "in"


@pytest.mark.parametrize(
    ("holder", "waiter", "line"),
    [
        ("exclusive", "shared", TRAINING),
        ("shared", "exclusive", MEASURING),
        ("exclusive", "exclusive", MEASURING),
    ],
)
def test_exclusion(others, holder, waiter, line):
    first = others(holder)
    assert first.line() == "in"
    second = others(waiter)
    assert second.line() == line
    second_line = []
    reader = threading.Thread(target=lambda: second_line.append(second.line()))
    reader.start()
    time.sleep(0.2)
    assert second_line == []
    first.let_go()
    reader.join(10)
    assert second_line == ["in"]
    assert first.line() == "out"


def test_measurement_is_not_starved_by_trainings(others):
    training = others("shared")
    assert training.line() == "in"
    measurement = others("exclusive")
    assert measurement.line() == MEASURING
    late = others("shared")
    assert late.line() == TRAINING
    training.let_go()
    assert measurement.line() == "in"
    measurement.let_go()
    assert measurement.line() == "out"
    assert late.line() == "in"


def test_killed_holder_frees_the_lock(others, tmp_path):
    holder = others("exclusive")
    assert holder.line() == "in"
    holder.process.kill()
    holder.process.wait()
    said = []
    with timing_lock(True, report=said.append, folder=tmp_path):
        pass
    assert said == []


def test_second_lock_of_one_thread_is_refused(tmp_path):
    message = "^this thread holds the timing lock already; release it first$"
    with timing_lock(False, folder=tmp_path):  # noqa: SIM117
        with pytest.raises(RuntimeError, match=message), timing_lock(True, folder=tmp_path):
            pass
    with timing_lock(True, folder=tmp_path):
        pass


def test_lock_is_free_after_an_error(others, tmp_path):
    with pytest.raises(ArithmeticError), timing_lock(True, folder=tmp_path):
        raise ArithmeticError
    assert others("exclusive").line() == "in"


def test_files_belong_to_the_user_alone(tmp_path):
    with public(True, folder=tmp_path):
        files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".gate", ".lock"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
