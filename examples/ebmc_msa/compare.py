"""EBMC beside baselines and published balancers: same encoders, same loop, same seeds, one table.

python examples/ebmc_msa/compare.py --data PATH --out DIR --jobs 2
python examples/ebmc_msa/compare.py --data PATH --out DIR --methods ebmc "ebmc -cce" "ebmc eta=0.2" --valid
python examples/ebmc_msa/compare.py --data PATH --out DIR --ablation
python examples/ebmc_msa/compare.py --data PATH --out DIR --sweep eta 0.03 0.1 0.3 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # holds the package ebmc_msa, which is not installed

from ebmc_msa.experiments.command import main

if __name__ == "__main__":
    sys.exit(main())
