"""The Triton kernels, run by Triton's interpreter on the CPU, against float64."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
_place = Path(__file__).with_name("triton_interpreted.py")
_spec = importlib.util.spec_from_file_location("triton_interpreted", _place)
interpreted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(interpreted)

OFFICIAL = ("dtn_7x7_h2_tiny",)
TOLERANCES = {"offset": 1e-4, "bfloat16": 1e-2, "dtn_7x7_h2_tiny": 2e-4}


@pytest.fixture(scope="module")
def found():
    """Errors of every case, from one process: the interpreter is chosen when Triton loads."""
    done = subprocess.run(
        [sys.executable, str(_place), *OFFICIAL],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*interpreted.CASES, *OFFICIAL])
def test_values_and_all_gradients(case, found):
    for name, error in found[case].items():
        assert error <= TOLERANCES.get(case, 1e-5), f"{name}: {error:.1e}"
