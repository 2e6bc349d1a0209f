"""What the environment says of other processes, as torchrun, srun, sbatch and salloc leave it."""

import os

import pytest

from patchssl.errors import ConfigError
from patchssl.launch import Launch, launched

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "host0",
    "MASTER_PORT": "29500",
}
# Of a script of sbatch: its shell is task 0 of the job, and no step.
SBATCH = {
    "SLURM_JOB_ID": "4120007",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "gpu[03,07]",
}
# The shell of salloc is a step of one task where sites have it so.
SALLOC = {**SBATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
SRUN = {
    **SBATCH,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03,07]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def _without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in TORCHRUN:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch(9, 16, 1, 8, "host0", 29500)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        ({name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}, "by hand"),
        (SBATCH, None),
        (SALLOC, None),
        (SRUN, Launch(5, 8, 1, 4, "gpu03", 15000 + 9, sees_own_gpu=True)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "777"}, Launch(5, 8, 1, 4, "10.0.0.1", 777, True)),
        # A torchrun on each host, started by srun; alone on one of them, started in a job of many tasks.
        ({**SRUN, **TORCHRUN}, Launch(9, 16, 1, 8, "host0", 29500)),
        ({**SRUN, **TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        # What scripts set before srun.
        ({**SRUN, "WORLD_SIZE": "8"}, Launch(5, 8, 1, 4, "gpu03", 15009, sees_own_gpu=True)),
    ],
)
def test_who_has_started_whom(
    environment: dict[str, str], expected: Launch | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == (Launch(9, 16, 9, 1, "host0", 29500) if expected == "by hand" else expected)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK is not set: start with torchrun or srun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT not set, .*: start with torchrun"),
        ({**TORCHRUN, "RANK": "16"}, "RANK is 16; of WORLD_SIZE 16 it is 0 to 15"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' in the environment; a whole number is needed"),
    ],
)
def test_half_an_environment_is_refused(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        launched()
