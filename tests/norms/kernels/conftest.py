"""What the kernel's tests need: certainty that the kernel did the work, and a kernel anew."""

import pytest
import torch

from triptych.norms import DynamicTokenNorm
from triptych.norms.kernels import cpu


@pytest.fixture
def only_fused(monkeypatch):
    """Any way but the kernel fails; ``reference`` still works."""

    def refuse(self, x, visible):
        raise AssertionError("the torch path was taken")

    by_torch = DynamicTokenNorm._by_torch

    def reference(self, x, visible=None):
        return by_torch(self, self._flatten(x), visible).view(x.shape)

    monkeypatch.setattr(DynamicTokenNorm, "_by_torch", refuse)
    monkeypatch.setattr(DynamicTokenNorm, "reference", reference)


@pytest.fixture
def fresh_kernel(monkeypatch, tmp_path):
    """The kernel is built and loaded again, in an empty folder; afterwards all is as it was."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    cpu._load.cache_clear()
    yield tmp_path
    cpu._load.cache_clear()


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards it is as it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
