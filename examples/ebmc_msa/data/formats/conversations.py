"""Conversations as the layouts hold them: names by row, and an order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.dataset import DataError

Names = Sequence[str]


def numbered(
    who: str,
    names: Mapping[str, Names],
    order: Mapping[str, Iterable[float]],
    speakers: Mapping[str, Names] | None = None,
) -> dict[str, Conversation]:
    """Conversations by split; one name is one number in all of them.

    Speakers are left out where no conversation has two of them.

    Args:
        who: file, for the messages.
        names: of the conversation of each row, by split; "" is none.
        order: any number of each row, greater is later; not looked at where the row belongs to no conversation.
        speakers: the name of each row's; "" is nobody known, and nobody else.

    Raises:
        DataError: an order that is no number, or two rows at the same place of a conversation.
    """
    number = _numbers(name for split in names.values() for name in split if name)
    pairs = {} if speakers is None else {s: list(zip(names[s], speakers[s], strict=True)) for s in names}
    spoken = {pair for split in pairs.values() for pair in split if all(pair)}
    several = len(spoken) > len({name for name, _ in spoken})
    number_of = _numbers(speaker for split in pairs.values() for _, speaker in split if speaker)
    unknown = iter(range(len(number_of), 2**62))
    found = {}
    for split, of in names.items():
        place = np.where([bool(name) for name in of], np.asarray(list(order[split]), np.float64), 0.0)
        if not np.isfinite(place).all():
            raise DataError(f"{who}: order holds NaN or infinities, expected a number for each row; correct it.")
        rank = np.empty(len(place), np.int64)
        rank[np.argsort(place, kind="stable")] = np.arange(len(place))
        taken = set()
        for name, at in zip(of, place.tolist(), strict=True):
            if name and (name, at) in taken:
                raise DataError(
                    f"{who}: conversation {name!r} has two utterances at {at:g} in its order, expected different "
                    "numbers; correct order."
                )
            taken.add((name, at))
        alone = iter(range(len(number) + 10**9 * (1 + len(found)), 2**62))  # rows of no conversation
        found[split] = Conversation(
            torch.tensor([number[name] if name else next(alone) for name in of], dtype=torch.int64),
            torch.from_numpy(rank),
            torch.tensor([number_of[one] if one else next(unknown) for one in speakers[split]])
            if speakers is not None and several
            else None,
        )
    return found


def by_clip(ids: Mapping[str, Names], separator: str) -> dict[str, Conversation] | None:
    """Conversations by the ids of the rows, `video<separator>clip`; None where one is not, or numbers repeat."""
    apart = {split: [name.rpartition(separator) for name in names] for split, names in ids.items()}
    if not all(video and clip.isdecimal() for rows in apart.values() for video, _, clip in rows):
        return None
    videos = {split: [video for video, _, _ in rows] for split, rows in apart.items()}
    try:
        return numbered("id", videos, {split: [int(clip) for _, _, clip in rows] for split, rows in apart.items()})
    except DataError:
        return None


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}
