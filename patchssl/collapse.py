"""Warnings in plain words when the logged measures say that training has collapsed."""

from collections.abc import Sequence

from patchssl.collapse_rules import RULES, Case, Line, Rule, is_number
from patchssl.config import Config

# A state counts once it has lasted so long, by both measures; before, it is the noise of batches or a transition.
_NUM_LINES, _NUM_STEPS = 5, 50
# No run is judged in this first part of its steps, nor while its learning rate rises.
_FIRST = 0.05


class CollapseAdviser:
    """Tells of each collapse once, and again only if it comes back after it has ended.

    All that it remembers follows from the lines of `metrics.jsonl`, so that a resumed run goes on with them; what still
    holds then is told once more.
    """

    def __init__(self, config: Config, num_steps: int, past: Sequence[Line] = ()) -> None:
        """Watch over a run.

        Args:
            config: of the run, in which `derive` has filled what was null.
            num_steps: of the whole run.
            past: lines of the run so far, by step; those that are done again are forgotten.
        """
        self._config, self._num_steps = config, num_steps
        self._past: Sequence[Line] | None = past
        self._kinds = ("cls", "patch") if config.loss.patch_weight else ("cls",)
        self._largest = dict.fromkeys(self._kinds, 0.0)
        self._recent: list[Line] = []
        self._told: set[tuple[str, str]] = set()

    def __call__(self, line: Line) -> list[str]:
        """What is wrong and new after a line."""
        for earlier in self._past or ():
            if earlier["step"] < line["step"]:
                self._keep(earlier)
        self._past = None
        self._keep(line)
        new = []
        for kind in self._kinds:
            case = Case(kind, self._config, self._largest[kind])
            lines = [line for line in self._recent if line["step"] >= self._settled(kind)]
            for rule in RULES:
                key = rule.name, kind
                known = _last([line for line in lines if rule.known(line, kind)])
                if key in self._told:
                    if not any(rule.holds(line, case) for line in known):
                        self._told.remove(key)
                elif _lasts(rule, case, known):
                    self._told.add(key)
                    new.append(rule.words(known[-1], case))
        return new

    def _keep(self, line: Line) -> None:
        for kind in self._kinds:
            rank = line.get(f"rank_{kind}")
            if is_number(rank):
                self._largest[kind] = max(self._largest[kind], rank)
        self._recent.append(line)
        # Twice as much as has to last, for lines that lack a value.
        self._recent = _last(self._recent, 2)

    def _settled(self, kind: str) -> float:
        """The step from which a kind of token is judged."""
        train, loss = self._config.train, self._config.loss
        first = max(_FIRST, train.warmup_fraction or 0.0, train.freeze_last_layer_fraction)
        if kind == "patch":
            first = max(first, loss.patch_weight_warmup_fraction)
        return first * self._num_steps


def _last(lines: list[Line], times: int = 1) -> list[Line]:
    """The last lines, no more than have to show a collapse, or so many times that."""
    start = 0
    while (
        len(lines) - start > times * _NUM_LINES and lines[-1]["step"] - lines[start + 1]["step"] >= times * _NUM_STEPS
    ):
        start += 1
    return lines[start:]


def _lasts(rule: Rule, case: Case, lines: Sequence[Line]) -> bool:
    """Whether all of enough lines show it."""
    if len(lines) < _NUM_LINES or lines[-1]["step"] - lines[0]["step"] < _NUM_STEPS:
        return False
    return all(rule.holds(line, case) for line in lines) and rule.stays(lines, case)
