"""Benchmarks of the library: ``python tests/benchmarks/run.py [REPORT ...]``; all of them without arguments.

They print tables, the ratio first, and judge nothing: two CPU threads, every row in a process of its own, the fastest
repetition. Run them on a machine that does nothing else.
"""

import argparse
from pathlib import Path

import blocks
import cached
import imports
import metrics
import pictures
import prompt_path
import watching

REPORTS = {
    "prompts": prompt_path.report,
    "blocks": blocks.report,
    "imports": imports.report,
    "metrics": metrics.report,
    "watching": watching.report,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"which tables: {', '.join(REPORTS)}, pictures, cached, metrics-large"
    parser.add_argument("reports", nargs="*", metavar="REPORT", help=names)
    parser.add_argument("--photographs", type=Path, help="a folder of JPEG photographs, for 'pictures' and 'cached'")
    given = parser.parse_args()
    reports = dict(REPORTS)
    if given.photographs is not None:
        reports["pictures"] = lambda: pictures.report(given.photographs)
        reports["cached"] = lambda: cached.report(given.photographs)
    chosen = given.reports or list(reports)
    reports["metrics-large"] = metrics.report_large
    for name in chosen:
        if name not in reports:
            parser.error(
                f"REPORT: expected one of {', '.join(reports)}, got {name!r} (pictures and cached need --photographs)"
            )
    for name in chosen:
        for table in reports[name]():
            print(table, flush=True)
