"""The ways in which training collapses: how the logged measures show each, and what to say of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from patchssl.config import Config

Line = Mapping[str, float]

# Healthy short runs have entropies of up to 0.975 ln K, and ranks of at least 2.8 and 0.27 of their largest.
_NEAR_UNIFORM = 0.01
_NEAR_ZERO, _ONE_PROTOTYPE = 0.05, 1.5
_ONE_DIRECTION, _LOST_RANK, _LOW_RANK = 1.5, 0.1, 0.25
_ABOVE_UNIFORM, _FALLING = 0.05, 0.9
# So few rows may agree by chance.
_FEW_ROWS = 8
_SHARP_TEMPERATURE, _USUAL_TEMPERATURE = 0.02, 0.07
_USUAL_STUDENT_TEMPERATURE, _USUAL_CENTER_MOMENTUM = 0.1, 0.9


@dataclass(frozen=True)
class Case:
    """What rules look at: one kind of token of a run.

    Attributes:
        kind: "cls" or "patch".
        config: of the run, in which `derive` has filled what was null.
        largest_rank: of its features in any line so far.
    """

    kind: str
    config: Config
    largest_rank: float

    @property
    def num_prototypes(self) -> int:
        """K."""
        model = self.config.model
        return model.cls_prototypes if self.kind == "cls" else model.patch_prototypes

    @property
    def uniform(self) -> float:
        """Ln K: the loss of a student that calls all prototypes equally likely, and the largest entropy."""
        return math.log(self.num_prototypes)

    @property
    def num_rows(self) -> int:
        """How many tokens of this kind the teacher has in a batch."""
        views, train = self.config.views, self.config.train
        side = views.global_size // self.config.model.patch_px
        return train.batch_size * views.num_global * (1 if self.kind == "cls" else side * side)

    @property
    def tokens(self) -> str:
        """The kind in words."""
        if self.kind == "patch":
            return "patches"
        return "class tokens" if self.config.model.pooling == "cls" else "means of patches"


@dataclass(frozen=True)
class Rule:
    """A way to collapse.

    Attributes:
        name: of the way.
        needs: of a line; its names lack the kind of token. Lines without one of these are passed over.
        holds: whether a line shows it.
        words: what is seen in the newest line, what it means and what to try.
        stays: whether lines that all show it, oldest first, are not on their way out of it.
    """

    name: str
    needs: tuple[str, ...]
    holds: Callable[[Line, Case], bool]
    words: Callable[[Line, Case], str]
    stays: Callable[[Sequence[Line], Case], bool] = lambda lines, case: True

    def known(self, line: Line, kind: str) -> bool:
        """Whether a line has all that is needed."""
        return all(is_number(line.get(f"{name}_{kind}")) for name in self.needs)


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether something was measured and is finite."""
    return value is not None and math.isfinite(value)


def _is_uniform(line: Line, case: Case) -> bool:
    most = case.uniform
    return (
        line[f"teacher_entropy_{case.kind}"] >= (1 - _NEAR_UNIFORM) * most
        and abs(line[f"loss_{case.kind}"] - most) <= _NEAR_UNIFORM * most
    )


def _uniform(line: Line, case: Case) -> str:
    entropy, rank = line[f"teacher_entropy_{case.kind}"], line.get(f"rank_{case.kind}")
    advice = [_sharper(case), _gentler(case)]
    if _is_usual(case) and is_number(rank) and rank < _LOW_RANK * case.largest_rank:
        # Features that are all alike leave nothing that a sharper teacher could bring out.
        advice.reverse()
    return (
        f"{case.tokens}: the loss sits at ln K, {line[f'loss_{case.kind}']:.4f} with ln {case.num_prototypes:,} = "
        f"{case.uniform:.4f}, and so does the teacher's entropy, {entropy:.4f}. To the teacher all prototypes are "
        f"equally likely, so that nothing can be learned from it. Try {_any_of(*advice)}"
    )


def _is_one_prototype(line: Line, case: Case) -> bool:
    return (
        case.num_rows >= _FEW_ROWS
        and line[f"prototypes_perplexity_{case.kind}"] <= _ONE_PROTOTYPE
        and line[f"teacher_entropy_{case.kind}"] <= _NEAR_ZERO * case.uniform
        and line[f"loss_{case.kind}"] <= 2 * _NEAR_ZERO * case.uniform
    )


def _one_prototype(line: Line, case: Case) -> str:
    return (
        f"{case.tokens}: the teacher gives everything the same prototype: {line[f'prototypes_used_{case.kind}']:.0f} "
        f"of {case.num_prototypes:,} in use, entropy {line[f'teacher_entropy_{case.kind}']:.4f}, loss "
        f"{line[f'loss_{case.kind}']:.4f}. The loss is near 0 because there is nothing to tell apart, not because it "
        f"is learned. Try {_any_of(_centred(case), _softer(case), _gentler(case))}"
    )


def _has_lost_rank(line: Line, case: Case) -> bool:
    rank = line[f"rank_{case.kind}"]
    return case.num_rows >= _FEW_ROWS and (rank <= _ONE_DIRECTION or rank < _LOST_RANK * case.largest_rank)


def _lost_rank(line: Line, case: Case) -> str:
    return (
        f"{case.tokens}: the effective rank of the teacher's features is {line[f'rank_{case.kind}']:.2f}, of up to "
        f"{case.largest_rank:.1f} so far: they point the same way whatever the image. "
        f"Try {_any_of(_gentler(case), _centred(case), _lighter(case), _steadier(case))}"
    )


def _is_above_uniform(line: Line, case: Case) -> bool:
    return line[f"loss_{case.kind}"] > (1 + _ABOVE_UNIFORM) * case.uniform


def _stays_above_uniform(lines: Sequence[Line], case: Case) -> bool:
    """Whether the excess over ln K has not become smaller from the first half to the last; it does at every start."""
    excess = [line[f"loss_{case.kind}"] - case.uniform for line in lines]
    half = len(excess) // 2
    return sum(excess[-half:]) > _FALLING * sum(excess[:half])


def _above_uniform(line: Line, case: Case) -> str:
    loss = line[f"loss_{case.kind}"]
    return (
        f"{case.tokens}: the loss is {loss:.4f}, {loss - case.uniform:.2f} above ln K (ln {case.num_prototypes:,} = "
        f"{case.uniform:.4f}): the student does worse than by calling all prototypes equally likely, and "
        f"does not come closer. Try {_any_of(_gentler(case), _milder(case), _clipped(case), _steadier(case))}"
    )


RULES = (
    Rule("uniform", ("loss", "teacher_entropy", "below_uniform"), _is_uniform, _uniform),
    Rule(
        "one prototype",
        ("loss", "teacher_entropy", "below_uniform", "prototypes_used", "prototypes_perplexity"),
        _is_one_prototype,
        _one_prototype,
    ),
    Rule("lost rank", ("rank",), _has_lost_rank, _lost_rank),
    Rule("above uniform", ("loss", "below_uniform"), _is_above_uniform, _above_uniform, _stays_above_uniform),
)


def _any_of(*advice: str) -> str:
    return "; ".join(part for part in advice if part)


def _is_usual(case: Case) -> bool:
    return case.config.loss.teacher_temperature <= _USUAL_TEMPERATURE


def _sharper(case: Case) -> str:
    loss = case.config.loss
    temperature = loss.teacher_temperature
    if not _is_usual(case):
        return (
            f"loss.teacher_temperature {_SHARP_TEMPERATURE} to {_USUAL_TEMPERATURE} (it is {temperature:g}, which "
            "leaves no differences between prototypes)"
        )
    lower = f"a lower loss.teacher_temperature (it is {temperature:g})" if temperature > _SHARP_TEMPERATURE else ""
    if loss.center == "sinkhorn":
        return lower
    return _any_of(
        f"loss.center sinkhorn with loss.teacher_temperature {_SHARP_TEMPERATURE} (they are {loss.center} and "
        f"{temperature:g}), since a moving centre can take away all that sets prototypes apart, most of all with "
        f"small batches; or loss.center_momentum nearer to 1 (it is {loss.center_momentum:g})",
        lower,
    )


def _softer(case: Case) -> str:
    temperature = case.config.loss.teacher_temperature
    if temperature >= _USUAL_TEMPERATURE:
        return ""
    return f"a higher loss.teacher_temperature (it is {temperature:g}; up to {_USUAL_TEMPERATURE} is usual)"


def _centred(case: Case) -> str:
    loss = case.config.loss
    if loss.center == "sinkhorn":
        return ""
    if loss.center_momentum > _USUAL_CENTER_MOMENTUM:
        return (
            f"loss.center_momentum {_USUAL_CENTER_MOMENTUM} (it is {loss.center_momentum:g}, with which the centre "
            "hardly moves and no prototype is held back), or loss.center sinkhorn"
        )
    return f"loss.center sinkhorn (it is {loss.center}), which uses all prototypes alike in every batch"


def _gentler(case: Case) -> str:
    train = case.config.train
    rate, warmup = train.learning_rate or 0.0, train.warmup_fraction or 0.0
    return (
        f"a lower train.learning_rate (it is {rate:g}; null lets it follow from batch size and width) or a longer "
        f"train.warmup_fraction (it is {warmup:g})"
    )


def _lighter(case: Case) -> str:
    train = case.config.train
    return (
        f"a lower train.weight_decay and train.final_weight_decay (they are {train.weight_decay:g} and "
        f"{train.final_weight_decay:g})"
    )


def _steadier(case: Case) -> str:
    return f"a train.ema_momentum nearer to 1 (it is {case.config.train.ema_momentum or 0.0:g})"


def _milder(case: Case) -> str:
    temperature = case.config.loss.student_temperature
    if temperature >= _USUAL_STUDENT_TEMPERATURE:
        return ""
    return f"loss.student_temperature {_USUAL_STUDENT_TEMPERATURE} (it is {temperature:g})"


def _clipped(case: Case) -> str:
    norm = case.config.train.clip_gradient
    return f"a lower train.clip_gradient (it is {norm:g})" if norm else "train.clip_gradient 3 (it is null)"
