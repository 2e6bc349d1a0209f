"""What `metrics.jsonl` says of a step."""

import math
from collections.abc import Mapping

from torch import Tensor

from patchssl.config import Config
from patchssl.measures import TargetSums, below_uniform, effective_rank, spread_rows
from patchssl.network import MAX_FEATURES, Projected
from patchssl.ranks import gathered
from patchssl.step_values import StepValues
from patchssl.trainer import LossTerms


def line(step: int, num_images: int, config: Config, values: StepValues, terms: LossTerms) -> dict[str, float]:
    """Losses and scheduled values of a step."""
    batch_size = config.train.batch_size
    return {
        "step": step,
        "epoch": step * batch_size / num_images,
        "images": (step + 1) * batch_size,
        "loss": terms.total.item(),
        "loss_cls": terms.cls.item(),
        "loss_patch": terms.patch.item(),
        "patch_pairs": terms.num_patch_pairs,
        "lr": values.learning_rate,
        "weight_decay": values.weight_decay,
        "momentum": values.momentum,
        "teacher_temperature": values.teacher_temperature,
        "patch_weight": values.patch_weight,
        **({"loss_koleo": terms.koleo.item()} if config.loss.koleo_weight else {}),
    }


def measured(losses: Mapping[str, float], sums: Mapping[str, TargetSums], teacher: Projected) -> dict[str, float]:
    """What tells whether training is alive; what is not finite, or is about pairs that there are none of, is left out.

    For each kind of token, `cls` and where patches are distilled `patch`, with the names of `TargetSums`:
    `teacher_entropy_*`, `prototypes_used_*` and `prototypes_perplexity_*` of the teacher's distributions, and `kl_*`
    and `below_uniform_*` of the loss. `rank_cls` and `rank_patch` are the effective ranks of the teacher's features of
    the global views of all processes, before the heads; of at most 512 rows, and where there is no class token, of the
    means of patches.

    Args:
        losses: "cls" and "patch", means over the pairs.
        sums: of the teacher's distributions, for each kind of token.
        teacher: its answer to the batch.
    """
    found: dict[str, float] = {}
    for kind, of_kind in sums.items():
        found[f"teacher_entropy_{kind}"] = of_kind.mean_entropy()
        if of_kind.weight:
            found[f"kl_{kind}"] = of_kind.kl(losses[kind])
            found[f"below_uniform_{kind}"] = below_uniform(losses[kind], len(of_kind.masses))
        found[f"prototypes_used_{kind}"] = of_kind.num_used()
        found[f"prototypes_perplexity_{kind}"] = of_kind.perplexity()
    found["rank_cls"] = _rank(teacher.features)
    found["rank_patch"] = _rank(teacher.patch_features)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _rank(features: Tensor) -> float:
    of_all = gathered(features)
    rows = of_all[spread_rows(len(of_all), MAX_FEATURES, of_all.device)]
    # A decomposition of so few rows is as quick on the CPU, which has one for every build of PyTorch.
    return effective_rank(rows.float().cpu())
