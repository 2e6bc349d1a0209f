"""Where the time of our step goes, taken with hooks on the modules and functions that it calls."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from step_forms import OurForm
from torch import Tensor, nn

from patchssl.heads import ProjectionHead

STEP = "step"
OPTIMIZER, EMA = "optimizer", "EMA"
_FORWARD, _BACKWARD, _BACKBONE_BACKWARD = "forward", "backward", "backbone, backward"
_LOSS = "loss, pairing and centring, forward"
_HEAD_BACKWARD = "loss and heads, backward"
_REST = "the rest (moving centres, zeroing gradients)"
_PARTS = (
    "teacher's backbone",
    "student's backbone",
    "heads",
    "prototypes",
    _LOSS,
    _HEAD_BACKWARD,
    _BACKBONE_BACKWARD,
    "clipping",
    OPTIMIZER,
    EMA,
    _REST,
)


class StageClock:
    """Seconds spent between names being started and stopped, in one step; GPUs are waited for."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing."""
        self._device = device
        self._started: dict[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)

    def start(self, name: str) -> None:
        """From now on."""
        self._started[name] = self._now()

    def stop(self, name: str) -> None:
        """Until now."""
        self.seconds[name] += self._now() - self._started.pop(name)

    def running(self, name: str) -> bool:
        """Whether it was started and not stopped."""
        return name in self._started

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a name."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.start(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(name)

        return called

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def stages(form: OurForm, num_steps: int) -> dict[str, float]:
    """Median seconds of each part of a step and, as STEP, of the whole; after one step to warm up."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(num_steps + 1):
        clock = StageClock(form.views.teacher.pixels.device)
        with _watched(form, clock):
            clock.timed(STEP, form.step)()
        if number:
            for name, seconds in _parts(clock.seconds).items():
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    """From what was measured to parts that sum to the step."""
    inside = sum(seconds[name] for name in ("teacher's backbone", "student's backbone", "heads", "prototypes"))
    parts = dict(seconds)
    parts[_LOSS] = parts.pop(_FORWARD) - inside - seconds[_BACKWARD]
    parts[_HEAD_BACKWARD] = parts.pop(_BACKWARD) - parts[_BACKBONE_BACKWARD]
    known = sum(value for name, value in parts.items() if name != STEP)
    parts[_REST] = parts[STEP] - known
    return {name: parts[name] for name in (*_PARTS, STEP)}


@contextmanager
def _watched(form: OurForm, clock: StageClock) -> Iterator[None]:
    networks, trainer = form.networks, form.trainer
    with ExitStack() as stack:
        for name, network in (("teacher's", networks.teacher), ("student's", networks.student)):
            # From the first to the last module that a timm ViT runs its images through.
            _watch(stack, clock, f"{name} backbone", network.backbone.patch_embed, network.backbone.norm)
            for head in (module for module in network.modules() if isinstance(module, ProjectionHead)):
                _watch(stack, clock, "heads", head, head)
                _watch(stack, clock, "prototypes", head.last_layer, head.last_layer)
        stack.callback(networks.student.backbone.norm.register_forward_hook(_backward_begins(clock)).remove)
        replaced: list[tuple[Any, str, str]] = [
            (form, "losses", _FORWARD),
            (networks, "ema_step", EMA),
        ]
        for owner, attribute, part in replaced:
            stack.enter_context(mock.patch.object(owner, attribute, clock.timed(part, getattr(owner, attribute))))
        backward = _both_backwards(clock, trainer.fabric.backward)
        stack.enter_context(mock.patch.object(trainer.fabric, "backward", backward))
        clipping = "patchssl.trainer.clip_gradients"
        stack.enter_context(mock.patch(clipping, clock.timed("clipping", _imported(clipping))))
        stack.callback(trainer.optimizer.register_step_pre_hook(lambda *_: clock.start(OPTIMIZER)).remove)
        stack.callback(trainer.optimizer.register_step_post_hook(lambda *_: clock.stop(OPTIMIZER)).remove)
        yield


def _watch(stack: ExitStack, clock: StageClock, name: str, first: nn.Module, last: nn.Module) -> None:
    stack.callback(first.register_forward_pre_hook(lambda *_: clock.start(name)).remove)
    stack.callback(last.register_forward_hook(lambda *_: clock.stop(name)).remove)


def _backward_begins(clock: StageClock) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook: once a gradient reaches the output of any group of views, loss and heads are done with."""

    def reached(gradient: Tensor) -> None:
        if not clock.running(_BACKBONE_BACKWARD):
            clock.start(_BACKBONE_BACKWARD)

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(reached)

    return hook


def _both_backwards(clock: StageClock, backward: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> None:
        clock.timed(_BACKWARD, backward)(*args, **kwargs)
        clock.stop(_BACKBONE_BACKWARD)

    return called


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)  # type: ignore[no-any-return]
