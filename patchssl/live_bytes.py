"""How many bytes of tensors are alive, and were at most, while code runs."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside it bring forth, each once and until it is freed.

    Inside a FakeTensorMode nothing is allocated, so that networks can be measured that no memory would hold.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at a time.
        small_at_peak: those of them in storages below a size.
    """

    def __init__(self, apart: Iterable[Tensor] = (), *, small_bytes: int = 0) -> None:
        """Count from 0.

        Args:
            apart: tensors that were there before; neither they nor views of them are counted.
            small_bytes: the size below which storages are small.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.small_at_peak = 0
        self._small, self._small_bytes = 0, small_bytes
        # Of storages, the same memory comes back as another object; its address stays until it is freed.
        self._kept = [tensor.untyped_storage() for tensor in apart]
        self._known: dict[int, weakref.ref[UntypedStorage] | None] = {storage._cdata: None for storage in self._kept}

    def restart(self) -> tuple[int, int]:
        """The peak and what was small at it; those of what follows are counted anew."""
        found = self.peak, self.small_at_peak
        self.peak, self.small_at_peak = self.now, self._small
        return found

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and take note of the tensors that it returns."""
        if func is torch.ops.prim.device.default:
            # More than half of all calls ask a fake tensor this.
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for leaf in [result] if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._known:
            return

        def freed(reference: "weakref.ref[UntypedStorage]") -> None:
            self._add(-num_bytes, num_bytes)
            del self._known[address]

        self._known[address] = weakref.ref(storage, freed)
        self._add(num_bytes, num_bytes)

    def _add(self, change: int, size: int) -> None:
        self.now += change
        self._small += change if size < self._small_bytes else 0
        if self.now > self.peak:
            self.peak, self.small_at_peak = self.now, self._small
