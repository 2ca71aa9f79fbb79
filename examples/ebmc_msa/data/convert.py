"""Convert data of any layout to a folder of plain .npy files, which train.py maps instead of reading.

python examples/ebmc_msa/convert.py mosei/unaligned_50.pkl mosei-converted
python examples/ebmc_msa/convert.py --verify mosei-converted
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from ebmc_msa.data import DataError, LabelOptions, load
from ebmc_msa.data.exit_status import exit_status
from ebmc_msa.data.formats.converted import is_folder, on_disk, verify, write_folder
from ebmc_msa.data.options import add_label_options, label_options
from ebmc_msa.data.parser import Parser


def convert(
    source: Path,
    dest: Path,
    *,
    split_seed: int = 0,
    labels: bool = True,
    options: LabelOptions | None = None,
    overwrite: bool = False,
) -> None:
    """Write `source` as the folder `dest`, which appears when all of it is written.

    Features pass through in blocks of rows: no modality is ever in memory whole.

    Raises:
        DataError: the source cannot be read, or `dest` cannot be written or exists and `overwrite` is False.
    """
    if dest.exists() and not (overwrite and is_folder(dest)):
        raise DataError(
            f"convert: {dest} exists already"
            + (" and is not a converted folder" if overwrite else "")
            + ", expected a new name; "
            + ("pass another." if overwrite else "pass another, or --overwrite if it was converted before.")
        )
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{dest.name}.partial-", dir=dest.parent))
    except OSError as problem:
        raise DataError(
            f"convert: {dest} cannot be written ({problem.strerror}), expected a place of yours; change it."
        ) from problem
    try:
        dataset = load(source, split_seed=split_seed, labels=labels, options=options, assemble=on_disk(partial))
        write_folder(dataset, partial)
        partial.chmod(0o755)
        if dest.exists():
            shutil.rmtree(dest)
        os.replace(partial, dest)
    except OSError as problem:
        raise DataError(f"convert: {dest}: {problem.strerror}; make room, or choose another place.") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        description="Convert an MMSA, MulT or GCNet pickle, a bc-LSTM folder or an .npz to a folder of plain .npy\n"
        "files with a manifest, cleaned and memory-mapped. Interrupted, it leaves nothing.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder; known by its content")
    parser.add_argument("dest", type=Path, metavar="DEST", nargs="?", help="folder to write")
    parser.add_argument("--verify", action="store_true", help="only check the content of a converted SOURCE")
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N",
        help="draws the validation split where the data have none (%(default)s)",
    )  # fmt: skip
    add_label_options(parser)
    parser.add_argument("--no-labels", action="store_true", help="to be predicted: labels may be missing")
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it was converted before")
    args = parser.parse_args(argv)
    if args.verify == (args.dest is not None):
        parser.error("expected SOURCE and DEST, or --verify and a converted folder alone")
    return exit_status(lambda: run(args), interrupted="Nothing was written.")


def run(args: argparse.Namespace) -> None:
    if args.verify:
        print(f"{args.source}: {verify(args.source):,} bytes as they were written.")
        return
    convert(
        args.source,
        args.dest,
        split_seed=args.split_seed,
        labels=not args.no_labels,
        options=label_options(args),
        overwrite=args.overwrite,
    )
    size = sum(file.stat().st_size for file in args.dest.rglob("*") if file.is_file())
    print(f"Written to {args.dest}: {size:,} bytes.")
