"""Which weights of a file found their place in a network."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from patchssl.errors import CheckpointError

_NUM_NAMED = 5
# A counter that only training needs; files from before PyTorch 0.4 have none.
_NO_WEIGHT = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What became of the weights of a file. Names are the network's, of what was left out the file's.

    Attributes:
        matched: filled from the file.
        missing: weights of the network that the file lacks.
        unexpected: backbone weights of the file that the network has no place for.
        reshaped: of one name and two shapes, so not filled.
        resampled: filled after resampling to the network's grid.
        dropped: heads and other parts of training, which no backbone needs.
        partial: accepted although something is missing, unexpected or of another shape.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    partial: bool = False

    def brief(self) -> dict[str, Any]:
        """Counts, and the names where there are few: what a result row keeps."""
        groups = {name: getattr(self, name) for name in ("missing", "unexpected", "reshaped", "resampled", "dropped")}
        named = {name: list(keys) for name, keys in groups.items() if 0 < len(keys) <= _NUM_NAMED}
        counts = {name: len(keys) for name, keys in groups.items()}
        return {"matched": len(self.matched), **counts, "partial": self.partial, "names": named}


def fill(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    origin: str,
    arch: str,
    advice: str,
    dropped: Sequence[str] = (),
    resampled: Sequence[str] = (),
    allow_partial: bool | None = False,
) -> LoadReport:
    """Load weights into a network; each of them, and nothing else, must find its place.

    Args:
        network: whose state is to be filled.
        weights: backbone weights by the network's names.
        origin: the file, for messages.
        arch: the network's name, for messages.
        advice: what to do where they do not fit.
        dropped: names of the file that were left out.
        resampled: names of weights that were resampled on the way.
        allow_partial: fill what fits and leave the rest as it is; None for False where messages shall not offer it.

    Raises:
        CheckpointError: some do not fit, and allow_partial is off; or none does. It counts and names them.
    """
    wanted = network.state_dict()
    reshaped = sorted(name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape)
    matched = {name: weights[name] for name in sorted(wanted.keys() & weights.keys()) if name not in reshaped}
    report = LoadReport(
        matched=tuple(matched),
        missing=tuple(sorted(name for name in wanted.keys() - weights.keys() if not name.endswith(_NO_WEIGHT))),
        unexpected=tuple(sorted(weights.keys() - wanted.keys())),
        reshaped=tuple(reshaped),
        resampled=tuple(resampled),
        dropped=tuple(dropped),
    )
    partial = bool(report.missing or report.unexpected or report.reshaped)
    if not matched or (partial and not allow_partial):
        offered = f"{advice}; --allow-partial accepts what fits" if matched and allow_partial is not None else advice
        raise CheckpointError(_told(report, wanted, weights, origin=origin, arch=arch, advice=offered))
    state = OrderedDict(matched)
    # Modules read from it which layout a state has; names and shapes have just shown that it is theirs.
    state._metadata = wanted._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state, strict=False)
    return LoadReport(**{name: getattr(report, name) for name in report.__slots__} | {"partial": partial})


def _told(
    report: LoadReport,
    wanted: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    origin: str,
    arch: str,
    advice: str,
) -> str:
    shapes = [f"{name}: {_shape(weights[name])} in the file, {_shape(wanted[name])} here" for name in report.reshaped]
    groups = {"missing": report.missing, "unexpected": report.unexpected, "of another shape": shapes}
    told = "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in groups.items() if names)
    num = sum(not name.endswith(_NO_WEIGHT) for name in wanted)
    return f"{origin} does not fit {arch}: of {num} backbone weights {len(report.matched)} match; {told}; {advice}"


def listed(names: Sequence[str], num: int = 3) -> str:
    """The first names, and a mark where there are more."""
    return ", ".join(names[:num]) + (", …" if len(names) > num else "")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
