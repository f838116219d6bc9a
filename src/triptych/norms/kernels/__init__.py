"""Fused kernels of DTN: the same numbers as with torch operators, near the cost of LayerNorm."""

from triptych.norms.kernels.build import KernelUnavailableError
from triptych.norms.kernels.cpu import KernelStatus, kernel_status

__all__ = ["KernelStatus", "KernelUnavailableError", "kernel_status"]
