"""Whether torchrun or srun started this process among others, from its environment alone."""

import os
from dataclasses import dataclass

from patchssl.errors import ConfigError

# Lightning's range: above the ports of services, and another one for each job.
_FIRST_PORT, _NUM_PORTS = 15000, 10000


@dataclass(frozen=True)
class Launch:
    """What whoever started several processes says to each of them.

    Attributes:
        rank: the number of this process.
        world_size: how many there are, at least 2.
        local_rank: its number among those of this host.
        local_size: how many there are on this host, as far as is known; else 1.
        address: of the host of rank 0.
        port: on which rank 0 listens.
        sees_own_gpu: SLURM may show each process no other GPU than its own (--gpus-per-task).
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    sees_own_gpu: bool = False


def launched() -> Launch | None:
    """What torchrun, srun or a user by hand says of the processes beside this one; None alone.

    RANK and WORLD_SIZE, as torchrun sets them, win over SLURM's variables, since srun may start torchrun on each host.
    A script of sbatch and a shell of salloc know of tasks, too, but only srun starts them: what runs there without srun
    is alone.

    Raises:
        ConfigError: the variables contradict each other or are incomplete.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _of_torchrun() if _number("WORLD_SIZE") > 1 else None
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        return _of_srun()
    if _number("WORLD_SIZE", 1) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and RANK is not set: start with torchrun or srun, or unset "
            "WORLD_SIZE to run one process alone"
        )
    return None


def _of_torchrun() -> Launch:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {' and '.join(missing)} not set, so that the processes "
            "cannot find each other: start with torchrun, which sets them"
        )
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK is {rank}; of WORLD_SIZE {world_size} it is 0 to {world_size - 1}")
    return Launch(
        rank,
        world_size,
        # By hand, on one host.
        local_rank=_number("LOCAL_RANK", rank),
        local_size=_number("LOCAL_WORLD_SIZE", 1),
        address=os.environ["MASTER_ADDR"],
        port=_number("MASTER_PORT"),
    )


def _of_srun() -> Launch:
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    # Two steps of a job may run at a time.
    number = _number("SLURM_JOB_ID", 0) + _number("SLURM_STEP_ID")
    return Launch(
        _number("SLURM_PROCID"),
        _number("SLURM_STEP_NUM_TASKS"),
        local_rank=_number("SLURM_LOCALID"),
        # As "2(x3),1": those of the first host, and three times two are alike.
        local_size=int(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").partition(",")[0].partition("(")[0]),
        address=os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes),
        port=_number("MASTER_PORT", _FIRST_PORT + number % _NUM_PORTS),
        sees_own_gpu=True,
    )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{name} is {text!r} in the environment; a whole number is needed") from None
