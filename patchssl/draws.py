"""Random numbers that depend on what they are for and on nothing else.

Every number is a function of (seed, epoch, sample index, stream, position), so order, batch size, number of
workers, number of processes and resuming cannot change it. The generator is Philox 4x32-10: Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, in integer arithmetic that is the same on every device.
"""

import torch
from torch import Tensor

from patchssl.structs import SampleKeys

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10.

    Args:
        counter: four int64 tensors of one shape, or broadcastable, holding unsigned 32-bit words.
        key: two unsigned 32-bit words.

    Returns:
        Four int64 tensors holding unsigned 32-bit words.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words fills 64 bits; int64 wraps to the same bits, and the mask after the
        # arithmetic shift removes the sign.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(
    seed: int, keys: SampleKeys, stream: int | Tensor, num: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw numbers for each sample of a batch.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        keys: the B samples.
        stream: what the numbers are for, 0 <= stream < 2**32, one for all or (B,); other streams are independent.
        num: how many numbers each sample gets.
        device: where to compute and return them; the values are the same everywhere.

    Returns:
        (B, num) float32 in [0, 1), multiples of 2**-24.
    """
    blocks = torch.arange(-(-num // 4), device=device)[None]  # (1, blocks)
    epoch, index = keys.epoch.to(device)[:, None], keys.index.to(device)[:, None]  # (B, 1)
    # 40 bits of index and 24 of epoch: a trillion images, 16 million epochs.
    streams = torch.as_tensor(stream, device=device).reshape(-1, 1)  # (B, 1) or (1, 1)
    words = philox(
        (blocks, streams, index & _LOW, (index >> 32 << 24 | epoch) & _LOW),
        (seed & _LOW, seed >> 32 & _LOW),
    )
    drawn = torch.stack(words, dim=-1).flatten(1)[:, :num]  # (B, num)
    return (drawn >> 8).float() * 2.0**-24
