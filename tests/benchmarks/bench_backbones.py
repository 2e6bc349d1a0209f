"""Every family of timm and every network of torchvision, untrained: does it give tokens, and how long does it take?

    python tests/benchmarks/bench_backbones.py [timm|torchvision] [WORD …]

WORD picks networks whose name has it in it. One line for each; those that fail are listed again at the end.
"""

import sys
import time
from collections.abc import Iterator

import timm
import torch
from torchvision import models

from patchssl.backbones import load_backbone
from patchssl.errors import PatchsslError

_MOST_PARAMS = 60_000_000


def smallest_of_families() -> Iterator[str]:
    """The smallest architecture of each of timm's modules."""
    best: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        with torch.device("meta"):
            try:
                network = timm.create_model(name, num_classes=0)
            except (RuntimeError, NotImplementedError):
                continue
        num = sum(parameter.numel() for parameter in network.parameters())
        best[module] = min(best.get(module, (num, name)), (num, name))
    for num, name in sorted(best.values()):
        if num <= _MOST_PARAMS:
            yield name


def run(spec: str) -> str:
    """Load, run two images of the native size, and once more one by one."""
    start = time.perf_counter()
    backbone = load_backbone(spec)
    side = backbone.preprocess.image_px
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = backbone.forward(pixels)
        alone = torch.cat([backbone.forward(image[None]).cls for image in pixels])
    if not bool(together.cls.isfinite().all()):
        raise PatchsslError("not finite")
    apart = float((together.cls - alone).abs().max() / together.cls.abs().max().clamp(min=1e-6))
    if apart > 1e-3:
        raise PatchsslError(f"depends on the batch by {apart:.1e}")
    geometry = backbone.with_protocol_geometry().preprocess
    return (
        f"{spec:55s} cls {backbone.dim:5d} {backbone.pooling:9s} patches {tuple(together.patches.shape[1:])!s:14s} "
        f"grid {together.grid!s:10s} cell {backbone.patch_px:3d} px, blocks {backbone.num_blocks:2d}, {side} px, "
        f"protocol {geometry.image_px} px, {time.perf_counter() - start:.1f} s"
    )


def main(arguments: list[str]) -> None:
    """Run all that the arguments pick."""
    libraries = [word for word in arguments if word in ("timm", "torchvision")] or ["timm", "torchvision"]
    words = [word for word in arguments if word not in ("timm", "torchvision")]
    specs: list[str] = []
    if "torchvision" in libraries:
        specs += [f"torchvision:{name}@random" for name in models.list_models(module=models)]
    if "timm" in libraries:
        specs += [f"timm:{name}@random" for name in smallest_of_families()]
    failed = []
    for spec in specs:
        if words and not any(word in spec for word in words):
            continue
        try:
            print(run(spec), flush=True)
        except PatchsslError as error:
            failed.append(f"{spec}: {error}")
            print(f"FAILED {failed[-1]}", flush=True)
    print(f"{len(failed)} failed", *failed, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
