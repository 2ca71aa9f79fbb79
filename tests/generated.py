"""Data sets whose structure is known, for tests of the pipeline's training."""

import torch

from ebmc_msa.data.dataset import SPLITS, Dataset, Split

SIZES = 1800, 400, 800


def interaction(kind, *, sizes=SIZES, seed=0, gain=2.3):
    """Classes made of three fair bits u, a and b, each shown along a random direction of 12 numbers with noise 1.

    Args:
        kind: `mixed`, class 2u + (a xor b), the first modality shows u and a, the second b;
            `xor`, class a xor b, the first shows a, the second b: neither alone says anything;
            `redundant`, class 2u + a, both show both bits, half as clearly;
            `decoy`, class 2u + a, the first shows it half as clearly; the second shows it in training, and of the
            other samples the class of somebody else.
        gain: distance of the two values of a bit from their middle, in standard deviations of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    u, a, b = torch.randint(2, (3, n), generator=generator)

    def shown(*bits, gain):
        directions = torch.nn.functional.normalize(torch.randn(len(bits), 12, generator=generator), dim=1)
        signs = 2.0 * torch.stack(bits, 1) - 1
        return gain * signs @ directions + torch.randn(n, 12, generator=generator)

    if kind == "mixed":
        target = 2 * u + (a ^ b)
        features = {"first": shown(u, a, gain=gain), "second": shown(b, gain=gain)}
    elif kind == "xor":
        target = a ^ b
        features = {"first": shown(a, gain=gain), "second": shown(b, gain=gain)}
    else:
        target = 2 * u + a
        others = torch.randperm(n - sizes[0], generator=generator) + sizes[0]
        rows = torch.cat([torch.arange(sizes[0]), others]) if kind == "decoy" else torch.arange(n)
        second = gain if kind == "decoy" else gain / 2
        features = {"first": shown(u, a, gain=gain / 2), "second": shown(u[rows], a[rows], gain=second)}

    return dataset(kind, 2 if kind == "xor" else 4, features, target, sizes)


def imbalanced(*, sizes=SIZES, seed=0):
    """Seven classes, 60 % of the samples in the first, which three modalities show more and less clearly.

    Of docs/method.md: a class is a random point in 32, 24 and 20 numbers with noise 1.
    """
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    torch.randint(2, (3, n), generator=generator)  # as `interaction` begins
    target = torch.multinomial(torch.tensor([0.6] + [0.4 / 6] * 6), n, True, generator=generator)
    features = {}
    for name, dim, gain in (("text", 32, 0.315), ("audio", 24, 0.245), ("vision", 20, 0.175)):
        centres = gain * torch.randn(7, dim, generator=generator)
        features[name] = centres[target] + torch.randn(n, dim, generator=generator)
    return dataset("seven", 7, features, target, sizes)


def dataset(name, classes, features, target, sizes):
    splits, start = {}, 0
    for split, size in zip(SPLITS, sizes, strict=True):
        part = slice(start, start := start + size)
        splits[split] = Split(
            {name: x[part] for name, x in features.items()},
            {},
            {name: torch.ones(size, dtype=torch.bool) for name in features},
            target[part],
            [f"{split}-{i}" for i in range(size)],
        )
    return Dataset(name, "classes", classes, splits, name)
