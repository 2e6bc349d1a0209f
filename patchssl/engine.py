"""Device, precision and processes of a training, as Lightning Fabric is told of them."""

import hashlib
from typing import Any, Literal

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
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError, DataError
from patchssl.network import Network

Way = Literal["alone", "ddp", "fsdp"]


def check_processes(config: Config, device: str, num_processes: int) -> Way:
    """How so many processes train together.

    Args:
        config: of the run.
        device: cpu, cuda or mps, with or without a number.
        num_processes: 1 alone.

    Raises:
        ConfigError: they cannot: the batch cannot be shared out evenly, or device or strategy is not for so many.
    """
    train = config.train
    if num_processes > 1 and device.startswith("mps"):
        raise ConfigError(f"{num_processes} processes cannot share the one device mps; start one, or use --device cpu")
    if num_processes == 1 and train.strategy == "fsdp":
        raise ConfigError(
            "train.strategy is fsdp, which shares networks out among processes, and there is one; start several, for "
            "instance by torchrun --nproc-per-node 2 -m patchssl pretrain ..., or take train.strategy auto"
        )
    _check_batch(config, num_processes)
    if num_processes == 1:
        return "alone"
    return "fsdp" if train.strategy == "fsdp" else "ddp"


def _check_batch(config: Config, num_processes: int) -> None:
    size, num_parts = config.train.batch_size, config.train.accumulate
    unit = num_processes * num_parts
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        near = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"train.batch_size is {size} and cannot be shared out evenly: {num_processes} process"
            f"{'es' if num_processes > 1 else ''} times train.accumulate {num_parts} need a multiple of {unit}; take "
            f"--batch-size {near}"
        )
    if config.loss.koleo_weight and size // num_parts < 2:
        raise ConfigError(
            f"loss.koleo_weight is {config.loss.koleo_weight}, and a batch of {size} in {num_parts} parts "
            "(train.accumulate) leaves one image in a part, with no other to be spread apart from; take "
            f"train.accumulate of at most {size // 2}"
        )


def check_alike(config: Config, source: ImageSource, device: str) -> None:
    """Make sure that all processes are about to do the same.

    Args:
        config: of the run.
        source: the images.
        device: cpu, cuda or mps.

    Raises:
        DataError, ConfigError: in the main process, some see other images, settings or devices.
        FailedElsewhereError: the same, in the others.
    """
    ids = hashlib.sha256("\0".join(source.ids).encode(errors="surrogateescape")).hexdigest()
    told = ranks.gather((f"{len(source)} images", ids, config.model_dump_json(), device))
    with ranks.failing_alike():
        for other, (num, names, settings, kind) in enumerate(told):
            if (num, names) != told[0][:2]:
                raise DataError(
                    f"{source.location} is not the same for all processes: process 0 finds {told[0][0]}, process "
                    f"{other} {num} {'' if num != told[0][0] else 'of other names'}; every host has to see the same"
                )
            if (settings, kind) != told[0][2:]:
                raise ConfigError(
                    f"process {other} has another configuration or device ({kind}) than process 0 ({told[0][3]}); "
                    "start all of them with the same options, on hosts that are alike"
                )


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
        raise NotImplementedError("the processes have joined already")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("the processes have joined already")

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
