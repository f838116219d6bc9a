"""The norms are plain PyTorch."""

import subprocess
import sys

CODE = """
import sys
for name in ("lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "transformers"):
    sys.modules[name] = None  # as if it were not installed
import triptych.norms
print(sorted(triptych.norms.__all__))
"""


def test_norms_import_without_a_training_framework():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "DynamicTokenNorm" in done.stdout
