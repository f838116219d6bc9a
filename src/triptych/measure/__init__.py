"""What a model costs, and how each number is made.

Parameters
    All, and those that are trained; shared ones once. Exact.
Multiply-adds per image (MAC/image)
    Half of what ``torch.utils.flop_counter`` counts in one prediction in evaluation mode, where a
    multiply-add is two FLOPs: matrix products, convolutions and attention. Element-wise work,
    statistics, softmax and data movement count nothing, nor does a custom kernel without a
    formula. Exact by that definition, the same on every machine.
Training throughput (images/s)
    Forward, backward and optimizer step (AdamW unless told otherwise) on one fixed batch that is
    on the device already: no loading, no augmentation. The median over the rounds, after warm-up
    rounds. The candidates of one measurement take turns, step by step, in an order that is turned
    round in every second round. Python's garbage collector is off meanwhile; CUDA is synchronized
    before and after each step.
Inference throughput (images/s)
    The same for a prediction in evaluation mode without gradients.
Ratios
    Throughput over the baseline's throughput in the same round; median and quartiles over the
    rounds. To be preferred over quotients of medians, as both sides saw the same conditions.
Peak memory (MiB)
    Growth over the first training step with a fresh optimizer: gradients, optimizer state,
    activations and work space, but not the weights and the batch, which lie there before. CUDA:
    ``max_memory_allocated`` less what was allocated before. CPU: peak less start of the resident
    set, made repeatable as :mod:`triptych.measure.memory` says; its grain is about 1 MiB. The
    median of three.
Saved for backward (MiB/image)
    Bytes of the distinct storages that autograd keeps after the forward pass of a training step,
    without parameters, buffers and the batch. Exact, the same on every machine for one choice of
    kernels.

Timing and training exclude each other through :func:`timing_lock`. Weights, buffers, gradients,
modes and random number generators are put back after every measurement.
"""

from triptych.measure.candidate import Candidate
from triptych.measure.cost import Cost, CostRatios, measure_interleaved, ratios
from triptych.measure.counts import count_parameters, macs_per_image, saved_for_backward
from triptych.measure.memory import can_measure_peak, peak_memory
from triptych.measure.timing import Ratio, Seconds, time_interleaved
from triptych.measure.timing_lock import timing_lock

__all__ = [
    "Candidate",
    "Cost",
    "CostRatios",
    "Ratio",
    "Seconds",
    "can_measure_peak",
    "count_parameters",
    "macs_per_image",
    "measure_interleaved",
    "peak_memory",
    "ratios",
    "saved_for_backward",
    "time_interleaved",
    "timing_lock",
]
