"""Convert data of any layout to a folder of plain .npy files, which train.py maps instead of reading.

python examples/ebmc_msa/convert.py mosei/unaligned_50.pkl mosei-converted
python examples/ebmc_msa/convert.py --verify mosei-converted
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # holds the package ebmc_msa, which is not installed

from ebmc_msa.data.convert import main

if __name__ == "__main__":
    sys.exit(main())
