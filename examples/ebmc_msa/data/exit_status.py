"""How the commands end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ebmc_msa.data.dataset import DataError


def exit_status(work: Callable[[], int | None], *, interrupted: str) -> int:
    """What `work` returns, or 0; 2 with the message of a `DataError` or `OSError`, 130 after Ctrl-C."""
    try:
        return work() or 0
    except (DataError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. {interrupted}", file=sys.stderr)
        return 130
