"""Names of classes, in the order in which the pickles of emotion recognition number them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# As DialogueRNN and GCNet number them; with four classes excited counts as happy.
IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
MELD_SENTIMENTS = ("neutral", "positive", "negative")


def iemocap(conversations: Iterable[str], classes: int) -> tuple[str, ...]:
    """Names of IEMOCAP's four or six classes, known by its conversations; else none."""
    known = classes in (4, 6) and all(re.match(r"Ses0\d[MF]_", name) for name in conversations)
    return IEMOCAP[:classes] if known else ()
