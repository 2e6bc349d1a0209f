"""The k-NN accuracy of a network that is being trained, on some images of labelled data that stay in memory.

It is what `patchssl eval knn` gives for the same images and weights: preprocessing, pooling, precision and votes are
those of the protocol `dino`, with k = 20, or all images that vote where there are fewer.
"""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl import ranks
from patchssl.backbones import Backbone
from patchssl.backbones.protocol import fresh_weights
from patchssl.backbones.runs import run_backbone
from patchssl.backbones.vit import build_vit
from patchssl.config import Config
from patchssl.data.labelled_subset import Kept, LabelledSubset, labels_of
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.extracting.forward import forward, resolve_precision
from patchssl.evaluate.features import Features
from patchssl.evaluate.knn import PROTOCOLS, evaluate
from patchssl.evaluate.metrics import bootstrap_interval
from patchssl.evaluate.scoring import chance
from patchssl.pooling import parse_tokens
from patchssl.workspace import MIB

logger = logging.getLogger(__name__)

BATCH_IMAGES = 64
_PROTOCOL = PROTOCOLS["dino"]


class OnlineKnn:
    """Some labelled images, and how well a backbone tells their classes.

    Attributes:
        subset: the images; those that can be read, once they are.
    """

    def __init__(self, config: Config, *, device: str) -> None:
        """Open the data and choose the images; none is read yet.

        Args:
            config: of the run; `log.knn_*` say which data and how many images, `train.seed` draws them.
            device: where the network is.

        Raises:
            DataError: the data are not there or not labelled, or cannot tell anything.
            ConfigError: there would be fewer voters than classes.
        """
        log = config.log
        assert log.knn_data is not None
        self.subset = _choose(config, log.knn_data)
        self._config, self._device = config, torch.device(device)
        self._precision = resolve_precision("auto", self._device)
        with fresh_weights(0):
            self._network = build_vit(config.model, config.views.global_size)
        self._kept: dict[str, Kept] = {}

    @property
    def k(self) -> int:
        """How many neighbours vote."""
        return min(_PROTOCOL.headline_k, len(self.subset.rows["train"]))

    def read(self, *, num_workers: int) -> None:
        """Read this process's share of the images and keep the crops.

        Args:
            num_workers: processes that decode; 0 decodes in this one.

        Raises:
            DataError: too many images cannot be read (`data.max_bad_fraction`), or too few are left.
        """
        crop, log = self._backbone().preprocess.crop, self._config.log
        bad = self._config.data.max_bad_fraction
        self.subset, self._kept = self.subset.read(crop, num_workers=num_workers, max_bad_fraction=bad)
        logger.info(
            "k-NN of the teacher every %d steps: %d images of %s, each by the %d nearest of %d, of %d classes; %.1f "
            "MiB of pixels are kept in memory",
            log.knn_every_steps,
            len(self.subset.rows["test"]),
            log.knn_data,
            self.k,
            len(self.subset.rows["train"]),
            self.subset.num_classes,
            sum(kept.pixels.nbytes for kept in self._kept.values()) / MIB,
        )

    def __call__(
        self, state: Mapping[str, Tensor], step: int, *, stop_requested: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Measure a backbone. Of several processes each has to call it, and computes its share.

        Args:
            state: of the backbone that is trained, on the device; it is only looked at. Tensors of which each process
                holds a share are put together.
            step: how many steps have been done.
            stop_requested: asked between batches; on True there is no result.

        Returns:
            `knn_top1` and the ends of its 95 % interval, `knn_ci95_low` and `knn_ci95_high`; the same for all
            processes, and empty if one of them was asked to stop.

        Raises:
            DataError: features are not finite.
        """
        start = time.perf_counter()
        features = self.features(state, stop_requested=stop_requested)
        if features is None:
            logger.info("step %d: k-NN of the teacher left out, since the run is to stop", step)
            return {}
        hits = evaluate(features["train"], features["test"], ks=(self.k,), temperature=_PROTOCOL.temperature).hits
        top1 = hits[self.k].top1
        value = float(top1.mean())
        low, high = bootstrap_interval(top1, seed=self._config.train.seed)
        guess = chance(["top1"], self.subset.num_classes)["top1"]
        logger.info(
            "step %d: k-NN of the teacher %.1f %% of %d images, 95 %% interval %.1f to %.1f, chance %.1f; %.1f s",
            *(step, 100 * value, len(top1), 100 * low, 100 * high, 100 * guess, time.perf_counter() - start),
        )
        return {"knn_top1": value, "knn_ci95_low": low, "knn_ci95_high": high}

    def features(
        self, state: Mapping[str, Tensor], *, stop_requested: Callable[[], bool] = lambda: False
    ) -> dict[str, Features] | None:
        """The features of both parts, in the order of their images; None where a call has no result.

        Args:
            state: as of a call.
            stop_requested: as of a call.
        """
        # The network takes over the tensors themselves, so that nothing is copied, and what else was done to the one
        # that is trained (its mode, its attention, what it is wrapped in) does not matter.
        self._network.load_state_dict({name: _whole(tensor) for name, tensor in state.items()}, assign=True)
        self._network.to(self._device)
        backbone = self._backbone()
        shares = ranks.gather({part: self._share(backbone, kept, stop_requested) for part, kept in self._kept.items()})
        result = {}
        for part, source in self.subset.sources.items():
            found = [share for of in shares if (share := of[part]) is not None]
            if len(found) < len(shares):
                return None
            rows = np.concatenate([kept for kept, _ in found])
            order = np.argsort(rows)
            rows = rows[order]
            features = np.concatenate([features for _, features in found])[order]
            ids = np.array([str(source.ids[row]) for row in rows], dtype=np.str_)
            result[part] = Features(features, labels_of(source)[rows], ids)
        return result

    def _share(
        self, backbone: Backbone, kept: Kept, stop_requested: Callable[[], bool]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """The places of this process's images and their features (m, D); None if it is asked to stop."""
        (token,) = parse_tokens("cls")
        features = np.empty((len(kept.rows), backbone.dim), dtype=np.float32)
        for start in range(0, len(kept.rows), BATCH_IMAGES):
            if stop_requested():
                return None
            batch = slice(start, start + BATCH_IMAGES)
            features[batch] = forward(backbone, kept.pixels[batch], (token,), self._precision)[token].cpu().numpy()
        return kept.rows, features

    def _backbone(self) -> Backbone:
        model, side = self._config.model, self._config.views.global_size
        return run_backbone(self._network, model, side, spec="the teacher", checkpoint_key="teacher")


def _whole(tensor: Tensor) -> Tensor:
    # By what it can do, since importing the class of tensors that are shared out takes seconds.
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _choose(config: Config, data: str) -> LabelledSubset:
    log = config.log
    sizes = {"num_train": log.knn_train_images, "num_test": log.knn_test_images}
    try:
        return LabelledSubset.choose(data, **sizes, seed=config.train.seed)
    except DataError as error:
        raise DataError(f"log.knn_data: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"log.knn_train_images: {error}") from None
