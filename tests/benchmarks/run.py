"""Benchmarks of the library: ``python tests/benchmarks/run.py [REPORT ...]``; all of them without arguments.

They print tables, the ratio first, and judge nothing: two CPU threads, every row in a process of its own, the fastest
repetition. Run them on a machine that does nothing else.
"""

import argparse
from functools import partial
from pathlib import Path

import blocks
import cached
import growth
import head
import imports
import metrics
import pictures
import prompt_path
import start
import tagging
import text_side
import watching
import whole

REPORTS = {
    "prompts": prompt_path.report,
    "blocks": blocks.report,
    "imports": imports.report,
    "metrics": metrics.report,
    "watching": watching.report,
}

# Not among those of a run without arguments: they take long, or are measured beside other libraries.
BESIDE = {
    "text": text_side.report,
    "head": head.report,
    "growth": growth.report,
    "start": start.report,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"which tables: {', '.join([*REPORTS, *BESIDE])}, tagging, pictures, cached, whole, metrics-large"
    parser.add_argument("reports", nargs="*", metavar="REPORT", help=names)
    parser.add_argument(
        "--photographs",
        type=Path,
        help="a folder of JPEG photographs, for 'pictures' and 'cached', and for 'tagging' in place of generated ones; "
        "of 'whole' the folder VOC2007",
    )
    parser.add_argument("--pictures", type=int, help="training pictures of 'whole' (default: 5,011)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that 'tagging' to 'whole' work")
    given = parser.parse_args()
    reports = dict(REPORTS)
    if given.photographs is not None:
        reports["pictures"] = lambda: pictures.report(given.photographs)
        reports["cached"] = lambda: cached.report(given.photographs)
    chosen = given.reports or list(reports)
    reports["metrics-large"] = metrics.report_large
    reports |= {name: partial(report, given.small) for name, report in BESIDE.items()}
    reports["tagging"] = lambda: tagging.report(given.small, given.photographs)
    if given.photographs is not None:
        reports["whole"] = lambda: whole.report(given.small, photographs=given.photographs, pictures=given.pictures)
    for name in chosen:
        if name not in reports:
            parser.error(
                f"REPORT: expected one of {', '.join(reports)}, got {name!r} (pictures, cached and whole need "
                "--photographs)"
            )
    for name in chosen:
        for table in reports[name]():
            print(table, flush=True)
