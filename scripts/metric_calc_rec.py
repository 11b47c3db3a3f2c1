"""Recall@1,5,10, NDCG@5,10 and MRR over all shards of a folder that scripts/eval_generate.sh wrote.

    python scripts/metric_calc_rec.py --test_results_dir runs/paper_flow/test
    python scripts/metric_calc_rec.py --test_results_dir runs/paper_flow/test --users 0 200

Episodes without a well-formed recommendation count as misses and are listed by kind. A folder in which users are
missing or doubled is refused unless told otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages lie beside this folder

from agents.shards import ShardsError, render_summary, summarize_folder


def main() -> int:
    """Print the metrics and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test_results_dir", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--users", type=int, nargs=2, metavar=("START", "END"), help="who is expected; default: all")
    parser.add_argument("--allow_missing", action="store_true", help="take the means over those who are there")
    parser.add_argument("--allow_doubled", action="store_true", help="take the first line of a doubled user")
    options = parser.parse_args()
    try:
        found = summarize_folder(
            options.test_results_dir,
            users=None if options.users is None else range(*options.users),
            allow_missing=options.allow_missing,
            allow_doubled=options.allow_doubled,
        )
    except ShardsError as error:
        print(f"metric_calc_rec: {error}", file=sys.stderr)
        return 2
    print(render_summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
