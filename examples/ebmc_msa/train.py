"""Train EBMC, or the plain models it is compared with, and write a report.

python examples/ebmc_msa/train.py                        the built-in synthetic set, a minute of processor time
python examples/ebmc_msa/train.py --data PATH --compare  your files: EBMC, concatenation, each modality alone
python examples/ebmc_msa/train.py --config FILE          options from a TOML file, such as a run leaves
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # holds the package ebmc_msa, which is not installed

from ebmc_msa.training.command import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends before it kills
    sys.exit(main())
