"""Benchmarks of the library: ``python tests/benchmarks/run.py [prompts] [blocks] [imports]``; without arguments, all.

They print tables, the ratio first, and judge nothing: two CPU threads, every row in a process of its own, the fastest
repetition. Run them on a machine that does nothing else.
"""

import argparse

import blocks
import imports
import prompt_path

REPORTS = {"prompts": prompt_path.report, "blocks": blocks.report, "imports": imports.report}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "reports", nargs="*", metavar="REPORT", help=f"which tables: {', '.join(REPORTS)} (default: all)"
    )
    chosen = parser.parse_args().reports or list(REPORTS)
    for name in chosen:
        if name not in REPORTS:
            parser.error(f"REPORT: expected one of {', '.join(REPORTS)}, got {name!r}")
    for name in chosen:
        for table in REPORTS[name]():
            print(table, flush=True)
