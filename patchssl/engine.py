"""Device, precision and processes of a training, as Lightning Fabric is told of them."""

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch.distributed.device_mesh import DeviceMesh

from patchssl import ranks
from patchssl.config import Config
from patchssl.network import Network
from patchssl.process_checks import Way, check_processes


class Engine:
    """Runs networks on this process's device, by itself or with other processes.

    Attributes:
        fabric: precision, backward passes and their synchronisation.
        device: of this process.
    """

    def __init__(self, config: Config, *, device: str, precision: str) -> None:
        """Choose the strategy; the processes have joined already.

        Args:
            config: of the run.
            device: cpu, cuda or mps; cuda:N for the GPU of that number.
            precision: fp32 or bf16.

        Raises:
            ConfigError: as in check_processes.
        """
        self._side = config.views.global_size
        self._way = check_processes(config, device, ranks.world_size())
        kind, _, number = device.partition(":")
        self.fabric = Fabric(
            accelerator=kind,
            strategy=_strategy(self._way),
            devices=[int(number)] if number else 1,
            num_nodes=ranks.world_size(),
            plugins=_LeavesOutputs("bf16-mixed", kind) if precision == "bf16" else Precision(),
        )
        if self._way != "alone":
            # Where this is not set, Fabric gives each process as many threads as the host has cores.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
            self.fabric.launch()
        self.device = self.fabric.device

    def set_up_student(self, student: Network) -> Any:
        """Move the student to the device and wrap it; its parameters may be others afterwards."""
        wrapped = self.fabric.setup_module(student)
        if self._way == "ddp":
            self._settle_buckets(wrapped)
        return wrapped

    def _settle_buckets(self, student: Any) -> None:
        """Go through the student once, for nothing.

        After its first backward pass DDP puts the gradients into other buckets, in which those of three processes or
        more are summed up in another order. The first step after a resume would differ from the same step of an
        uninterrupted run by its rounding.
        """
        training = student.training
        student.eval()  # nothing is drawn
        outputs = student([torch.zeros(2, 3, self._side, self._side, device=self.device)])
        self.fabric.backward(torch.stack([output.sum() for output in outputs]).sum())
        student.train(training)
        student.zero_grad(set_to_none=True)

    def set_up_teacher(self, teacher: Network) -> None:
        """Move the teacher to the device and share it out as the student is; it has no gradients to be wrapped for."""
        if self._way == "fsdp":
            assert isinstance(self.fabric.strategy, ModelParallelStrategy)
            _share_out(teacher, self.fabric.strategy.device_mesh, keep_root=False)
        else:
            teacher.to(self.device)


class _LeavesOutputs(MixedPrecision):
    """Leaves what a network returns as it is: the copy in float32 of a large matrix of prototypes is not wanted."""

    def convert_output(self, data: Any) -> Any:
        """Do nothing."""
        return data


class _Joined(ClusterEnvironment):
    """The processes that have joined, each of which is for Fabric a host with one device."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise NotImplementedError("the processes have joined already, so that nobody has to find them")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("the processes have joined already, so that nobody has to find them")

    @staticmethod
    def detect() -> bool:
        return ranks.is_joined()

    def world_size(self) -> int:
        return ranks.world_size()

    def set_world_size(self, size: int) -> None:
        assert size == ranks.world_size()

    def global_rank(self) -> int:
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        assert rank == ranks.rank()

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return ranks.rank()


def _strategy(way: Way) -> Strategy | str:
    if way == "alone":
        return "auto"
    if way == "fsdp":
        strategy: Strategy = ModelParallelStrategy(
            _share_out_student, data_parallel_size=ranks.world_size(), tensor_parallel_size=1
        )
    else:
        strategy = DDPStrategy()
    strategy.cluster_environment = _Joined()  # type: ignore[attr-defined]
    return strategy


def _share_out_student(student: Network, mesh: DeviceMesh) -> Network:
    return _share_out(student, mesh, keep_root=True)


def _share_out(network: Network, mesh: DeviceMesh, *, keep_root: bool) -> Network:
    """Leave each process its share of each block, and of what is outside of blocks, gathered when needed.

    Args:
        network: its parameters become others.
        mesh: of the processes.
        keep_root: keep what is outside of blocks after a forward pass, for the backward pass that is sure to come.
    """
    from torch.distributed.fsdp import fully_shard

    processes = mesh["data_parallel"]
    for block in network.backbone.blocks:
        fully_shard(block, mesh=processes)
    fully_shard(network, mesh=processes, reshard_after_forward=not keep_root)
    return network
