"""What balancing costs, and how fast data are read.

python examples/ebmc_msa/benchmark.py cost --help    a step of each component and of EBMC beside plain concatenation
python examples/ebmc_msa/benchmark.py data --help    training on data of MOSEI's size
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # holds the package ebmc_msa, which is not installed

from ebmc_msa.data.parser import Parser
from ebmc_msa.experiments import cost, throughput

BENCHMARKS = {"cost": cost.main, "data": throughput.main}

if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its own; --help lists them")
    args = parser.parse_args()
    sys.exit(BENCHMARKS[args.what](args.options))
