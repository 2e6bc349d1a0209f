"""Linear heads trained side by side by SGD, as functions on tensors.

As DINO (arXiv 2104.14294 §F.2, eval_linear.py) and DINOv2 (arXiv 2304.07193 §B.3, eval/linear.py) train them: cross
entropy, momentum 0.9, no weight decay, W ~ N(0, 0.01), b = 0, a learning rate that falls to 0 along half a cosine.
The gradient of a linear head is written out, so that all heads on the same features take one matrix product forward
and one backward, however many there are.

Letters: B images, D width, C classes, G groups of heads, R learning rates, H = G · R heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.schedules import cosine

MOMENTUM = 0.9

_INITIAL_STD = 0.01
_CHUNK_VALUES = 16_000_000


@dataclass(frozen=True, eq=False, slots=True)
class Heads:
    """G groups of heads. Those of a group read the same columns of the features and differ in their learning rate.

    Heads are numbered group by group, and in a group in the order of the learning rates. The outputs of a group are
    ordered by class, then by head: a softmax over classes whose heads lie side by side is many times quicker.

    Attributes:
        columns: first and end of the columns that each group reads.
        rates: (C · R,) the learning rate of each output of a group.
        num_classes: C.
        weights: for each group (width, C · R).
        weight_momenta: the same.
        bias: (G, C · R).
        bias_momentum: the same.
    """

    columns: tuple[tuple[int, int], ...]
    rates: Tensor
    num_classes: int
    weights: tuple[Tensor, ...]
    weight_momenta: tuple[Tensor, ...]
    bias: Tensor
    bias_momentum: Tensor

    def __len__(self) -> int:
        return self.bias.numel() // self.num_classes


def fresh_heads(
    columns: Sequence[tuple[int, int]],
    learning_rates: Sequence[float],
    num_classes: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Heads:
    """Draw heads; they are the same on every device.

    Args:
        columns: first and end of the columns that each of G groups reads.
        learning_rates: R of them, above 0, as SGD applies them.
        num_classes: C.
        seed: of the weights.
        device: where to keep and train them.
    """
    generator = torch.Generator().manual_seed(seed)
    num_outputs = len(learning_rates) * num_classes
    weights = tuple(
        (torch.randn(stop - start, num_outputs, generator=generator) * _INITIAL_STD).to(device)
        for start, stop in columns
    )
    bias = torch.zeros(len(columns), num_outputs, device=device)
    return Heads(
        columns=tuple(columns),
        rates=torch.tensor(learning_rates, dtype=torch.float32, device=device).repeat(num_classes),
        num_classes=num_classes,
        weights=weights,
        weight_momenta=tuple(torch.zeros_like(weight) for weight in weights),
        bias=bias,
        bias_momentum=torch.zeros_like(bias),
    )


def logits(heads: Heads, features: Tensor) -> Tensor:
    """What all heads answer: (B, D) float32 → (B, C, H)."""
    parts = [
        torch.addmm(heads.bias[group], features[:, start:stop], weight).unflatten(1, (heads.num_classes, -1))
        for group, ((start, stop), weight) in enumerate(zip(heads.columns, heads.weights, strict=True))
    ]  # (B, C, R) each
    return torch.cat(parts, dim=2)


def sgd_step(heads: Heads, features: Tensor, targets: Tensor, *, factor: float) -> None:
    """Take one step on the mean cross-entropy of every head, in place.

    Momentum as torch.optim.SGD has it: v ← 0.9 v + gradient, then W ← W - rate · v. No head sees another, so this is
    also a step on the sum of their losses.

    Args:
        heads: to change.
        features: (B, D) float32 on the heads' device.
        targets: (B,) int64 in [0, C).
        factor: of all learning rates, from the schedule.
    """
    residuals = torch.softmax(logits(heads, features), dim=1)  # (B, C, H)
    residuals[torch.arange(len(targets), device=targets.device), targets] -= 1
    # Of the logits: (B, C, H) -> (G, B, C · R)
    gradients = residuals.div_(len(targets)).unflatten(2, (len(heads.columns), -1)).permute(2, 0, 1, 3).flatten(2)
    heads.bias_momentum.mul_(MOMENTUM).add_(gradients.sum(dim=1))
    heads.bias.addcmul_(heads.bias_momentum, heads.rates, value=-factor)
    for group, (start, stop) in enumerate(heads.columns):
        momentum = heads.weight_momenta[group]
        momentum.addmm_(features[:, start:stop].T, gradients[group], beta=MOMENTUM)
        heads.weights[group].addcmul_(momentum, heads.rates, value=-factor)


def train_heads(
    heads: Heads,
    features: Tensor,
    targets: Tensor,
    *,
    rows: NDArray[np.int64],
    num_iterations: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train heads on features that were computed before, the learning rates falling at every iteration.

    The images are gone through in an order shuffled anew for each epoch; a batch may begin in one epoch and end in
    the next. Features that do not lie on the heads' device are moved batch by batch.

    Args:
        heads: to train, in place.
        features: (M, D) float32.
        targets: (M,) int64 in [0, C), where the features are.
        rows: (m,) the images to train on.
        num_iterations: steps.
        batch_size: B; it may be above m.
        seed: of the order.
    """
    device = heads.bias.device
    for step, places in enumerate(_batches(len(rows), batch_size, num_iterations, seed)):
        chosen = torch.from_numpy(rows[places]).to(features.device)
        factor = cosine(step, base=1.0, final=0.0, num_steps=num_iterations)
        batch, classes = features.index_select(0, chosen), targets.index_select(0, chosen)
        sgd_step(heads, batch.to(device), classes.to(device), factor=factor)


def _batches(num: int, batch_size: int, num_batches: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Places of each batch: permutations of num places, one after the other, cut into batches."""
    waiting, epoch = np.empty(0, dtype=np.int64), 0
    for _ in range(num_batches):
        while len(waiting) < batch_size:
            waiting = np.concatenate((waiting, np.random.default_rng([seed, epoch]).permutation(num)))
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def converged(heads: Heads) -> NDArray[np.bool_]:
    """(H,) whether all weights of a head are finite; a head that diverged never comes back to them."""
    finite = torch.stack([weight.isfinite().all(dim=0) for weight in heads.weights]) & heads.bias.isfinite()
    # (G, C · R) -> (G, R) -> (H,)
    whole: NDArray[np.bool_] = finite.unflatten(1, (heads.num_classes, -1)).all(dim=1).flatten().cpu().numpy()
    return whole


def count_correct(heads: Heads, features: Tensor, targets: Tensor) -> NDArray[np.int64]:
    """How many images each head classifies correctly.

    Args:
        heads: H of them.
        features: (M, D) float32.
        targets: (M,) int64; one outside [0, C) is never met.

    Returns:
        (H,).
    """
    correct = torch.zeros(len(heads), dtype=torch.int64, device=heads.bias.device)
    step = max(1, _CHUNK_VALUES // heads.bias.numel())
    for start in range(0, len(features), step):
        answers = logits(heads, features[start : start + step].to(correct.device)).argmax(dim=1)  # (b, H)
        correct += (answers == targets[start : start + step].to(correct.device)[:, None]).sum(dim=0)
    return correct.cpu().numpy()


def mean_losses(heads: Heads, features: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Mean cross-entropy of each head, (H,), on (M, D) features with targets (M,) in [0, C)."""
    total = torch.zeros(len(heads), dtype=torch.float64)
    step = max(1, _CHUNK_VALUES // heads.bias.numel())
    for start in range(0, len(features), step):
        answers = logits(heads, features[start : start + step].to(heads.bias.device))  # (b, C, H)
        classes = targets[start : start + step].to(answers.device)[:, None].expand(-1, len(heads))  # (b, H)
        losses = torch.nn.functional.cross_entropy(answers, classes, reduction="none")  # (b, H)
        # Moved first, because not every device has float64.
        total += losses.sum(dim=0).cpu().double()
    return (total / len(features)).numpy()


def head_scores(heads: Heads, head: int, features: Tensor) -> NDArray[np.float32]:
    """(M, C) logits of one head for (M, D) float32 features."""
    num_rates = len(heads.rates) // heads.num_classes
    group, place = divmod(head, num_rates)
    start, stop = heads.columns[group]
    weight, bias = heads.weights[group][:, place::num_rates], heads.bias[group, place::num_rates]
    step = max(1, _CHUNK_VALUES // heads.num_classes)
    parts = [
        torch.addmm(bias, features[first : first + step, start:stop].to(bias.device), weight).cpu()
        for first in range(0, len(features), step)
    ]
    return torch.cat(parts).numpy()
