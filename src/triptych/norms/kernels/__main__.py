"""``python -m triptych.norms.kernels``: build the CPU kernel ahead, and say which way is taken."""

from triptych.norms.kernels.cpu import kernel_status

if __name__ == "__main__":
    print(kernel_status())
