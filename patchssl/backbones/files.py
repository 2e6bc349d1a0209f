"""Weight files without an architecture beside them: which family are they of?"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import timm
from torch import Tensor

from patchssl.backbones import runs, timm_models
from patchssl.backbones.checkpoints import Network, pick_network
from patchssl.backbones.dino import remap_dino
from patchssl.backbones.dinov2 import remap_dinov2, without_chunk
from patchssl.backbones.dinov3 import find_arch
from patchssl.backbones.heads import ARCHS, arch_name, num_heads_of
from patchssl.backbones.options import LoadOptions
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.reading import read_file
from patchssl.backbones.reference_vit import anatomy, build
from patchssl.backbones.report import fill, listed
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.vit import ViTReader
from patchssl.checkpoint import KIND
from patchssl.errors import CheckpointError

_IMAGE_PX, _RESIZE_PX = 224, 256
_VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight")
# Names that no network of these projects has and timm's ViTs may have.
_TIMMS = ("reg_token", "norm_pre.weight", "fc_norm.weight", "attn_pool.q.weight", "head.weight", "dist_token")
_OF_DINOV2 = ("register_tokens", "blocks.0.ls1.gamma", "blocks.0.mlp.w12.weight", "mask_token")
_OF_IBOT = ("masked_embed", "ibot_loss", "head.last_layer2.weight_v", "head.mlp2.0.weight")


class Family(NamedTuple):
    """What differs between the projects.

    Attributes:
        remap: weights by the project's names → by timm's, and names of what only training needs.
        resampling: of the position embedding, with registers and without.
    """

    remap: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    resampling: tuple[str, str]


FAMILIES = {
    "dino": Family(remap_dino, ("dino", "dino")),
    "ibot": Family(remap_dino, ("dino", "dino")),
    "pwself": Family(remap_dino, ("dino", "dino")),
    "dinov2": Family(remap_dinov2, ("dinov2-reg", "dino")),
}


def load_path(spec: ModelSpec, options: LoadOptions) -> Backbone:
    """Load a run folder, a checkpoint of ours, or a weight file of another project.

    Raises:
        ConfigError: an option has no meaning for it or contradicts it.
        CheckpointError: it cannot be read, its family or architecture cannot be told, or it does not fill the network.
    """
    path = Path(spec.name)
    file = path if path.is_file() else runs.find_checkpoint(path)
    content = read_file(file)
    if content.get("kind") == KIND or spec.random or path.is_dir():
        return runs.load_run(spec, file, options)
    network = pick_network(content, options.checkpoint_key, str(file))
    family = detect(network)
    if family in FAMILIES:
        return _load_vit(spec, network, FAMILIES[family], family, options)
    options.refuse("num_heads", spec=spec.text, reason="its architecture tells the heads")
    if family == "dinov3":
        arch = options.arch or find_arch(network.weights, str(file))
        return timm_models.load_weights(arch, content, file, spec=spec.text, options=options, family=family)
    named = options.arch or _known(network.arch)
    if named is None:
        raise CheckpointError(_unknown(network, str(file)))
    return timm_models.load_weights(named, content, file, spec=spec.text, options=options)


def detect(network: Network) -> str:
    """The family that a network's names are of; empty where they are of none that is known here."""
    names = {without_chunk(name) for name in network.weights}
    if "storage_tokens" in names or "rope_embed.periods" in names:
        return "dinov3"
    if not names.issuperset(_VIT) or "blocks.0.attn.qkv.weight" not in names or names.intersection(_TIMMS):
        return ""
    if names.intersection(_OF_DINOV2) or names != network.weights.keys():
        return "dinov2"
    if (names | set(network.outside) | network.marks).intersection(_OF_IBOT):
        return "ibot"
    return "pwself" if network.centre_dims == 3 else "dino"


def _load_vit(spec: ModelSpec, network: Network, family: Family, name: str, options: LoadOptions) -> Backbone:
    weights, dropped = family.remap(network.weights)
    shape = anatomy(weights, spec.name)
    num_heads = num_heads_of(
        shape,
        num_heads=options.num_heads,
        arch=options.arch,
        written=network.arch,
        origin=spec.name,
        assumed=options.assumed_heads,
    )
    resampling = family.resampling[0 if shape.num_registers else 1]
    with fresh_weights(options.seed):
        vit = build(shape, num_heads=num_heads, resampling=resampling)
    arch = arch_name(shape)
    load = fill(
        vit,
        weights,
        origin=spec.name,
        arch=f"a {arch} of {name}",
        advice="the file was cut or changed; take another copy of it",
        dropped=[*dropped, *network.outside],
        allow_partial=options.allow_partial,
    )
    # The largest multiple of the patch up to 224; 224 itself for every patch that these projects use.
    image_px = max(_IMAGE_PX // shape.patch_px, 1) * shape.patch_px
    return Backbone.of(
        vit,
        ViTReader(),
        spec=spec.text,
        family=name,
        arch=arch,
        dim=shape.dim,
        patch_px=shape.patch_px,
        preprocess=Preprocess(image_px=image_px, resize_px=image_px * _RESIZE_PX // _IMAGE_PX),
        checkpoint_key=network.checkpoint_key,
        num_heads=num_heads,
        num_registers=shape.num_registers,
        positions=resampling,
        load=load,
    )


def _known(arch: str | None) -> str | None:
    """An architecture that a file names, if it is one of timm."""
    return arch if arch is not None and arch not in ARCHS and timm.is_model(arch) else None


def _unknown(network: Network, origin: str) -> str:
    names = list(network.weights)
    if not names or all(name.startswith(("head.", "mlp.", "last_layer", "dino_head.", "ibot_head.")) for name in names):
        heads = [*names, *network.outside]
        return (
            f"{origin} holds no backbone, only {len(heads)} weights of heads ({listed(heads)}); give the checkpoint "
            "that the backbone is in"
        )
    kind = "a ViT, but not of DINO, iBOT, PW-Self, DINOv2 or DINOv3" if set(_VIT) <= set(names) else "of another family"
    return (
        f"{origin} is {kind} ({len(names)} weights: {listed(names)}), and nothing in it tells its architecture; name "
        f"it: timm:NAME@{origin} or torchvision:NAME@{origin}"
    )
