"""Fully sharded data parallelism: every process keeps its piece of weights, gradients, moments.

On PyTorch's ``fully_shard`` (FSDP2), whose pieces stay parameters of their own name and shape, so
that weight decay and rates are chosen as ever. Checkpoints hold whole tensors: they are the same
files as without sharding, and a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


class ShardedStrategy(DDPStrategy):
    """DDP's processes; instead of a wrapper around equal copies, pieces of one model.

    ``units``: also gather every block on its own, not only the whole network. For networks whose
    blocks are called as modules; visible-token encoders call what lies inside them.
    """

    def __init__(self, *, units: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def configure_ddp(self) -> None:
        """Cut the networks of the module in pieces; runs before the optimizer is made."""
        assert self.lightning_module is not None
        mesh = init_device_mesh(self.root_device.type, (self.num_processes,))
        for network in networks(self.lightning_module):
            for unit in blocks(network) if self.units else ():
                # Before that of fully_shard, whose own hook an operation in place would lose.
                unit.register_forward_hook(_in_memory_of_its_own)
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
            # Whole weights after a forward pass would hide from whoever reads parameters.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on every process."""
        assert self.lightning_module is not None
        return _whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole tensors, on every process."""
        return _whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut what a checkpoint holds as the parameters are cut."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            pieces = {
                place: _pieces(values, parameters[place])
                for place, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": pieces})


def _in_memory_of_its_own(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    view = isinstance(output, Tensor) and output._base is not None
    return output.clone() if view else output


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """What is called as a module in a step: the model, and the average of its weights."""
    yield module.model  # type: ignore[misc]
    average = getattr(module, "average", None)
    if average is not None:
        yield average.module


def blocks(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a backbone, from all its lists of that name."""
    found: list[nn.Module] = []
    for module in network.modules():
        found += _leaves(getattr(module, "blocks", None))
    return found


def _leaves(listed: Any) -> list[nn.Module]:
    if not isinstance(listed, (nn.ModuleList, nn.Sequential)):
        return []
    return [
        leaf
        for child in listed
        for leaf in (
            _leaves(child) if isinstance(child, (nn.ModuleList, nn.Sequential)) else [child]
        )
    ]


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor itself, or all pieces of it; every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _whole(value: Any) -> Any:
    if isinstance(value, Tensor):
        return whole_tensor(value.detach())
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _pieces(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """An optimizer's state of one parameter; what has its shape is cut like it."""
    if not isinstance(parameter, DTensor):
        return dict(values)
    return {
        name: distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements
        )
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }
