"""Where the minutes of a run of the workflow went: `python benchmarks/minutes.py`, after `make all`.

Reads Snakemake's log of a run, and prints the seconds of its jobs by rule, and the longest jobs.
"""

import argparse
import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from tabulate import tabulate

LONGEST = 12  # jobs that are listed
EVENT = re.compile(
    r"^\[(?P<time>.+ \d{4})\]$|^(?:local)?rule (?P<rule>\w+):$|^    jobid: (?P<begun>\d+)$"
    r"|^    wildcards: (?P<wildcards>.+)$|^Finished jobid: (?P<ended>\d+) ",
    re.MULTILINE,
)


def read_jobs(log):
    """Return (seconds, rule, wildcards) of every job that a log says has finished."""
    now, described, begun, jobs = None, None, {}, []
    for found in EVENT.finditer(log):
        kind, value = found.lastgroup, found[found.lastgroup]
        if kind == "time":
            now = datetime.strptime(value, "%a %b %d %H:%M:%S %Y")
        elif kind == "rule":
            described = {"begin": now, "rule": value, "wildcards": ""}
        elif kind == "wildcards":
            described["wildcards"] = value
        elif kind == "begun":
            begun[value] = described
        elif value in begun:
            job = begun.pop(value)
            jobs.append(((now - job["begin"]).total_seconds(), job["rule"], job["wildcards"]))
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("log", type=Path, nargs="?", help="default: the newest under .snakemake/log")
    options = parser.parse_args()
    path = options.log or max(Path(".snakemake/log").glob("*.log"), default=None)
    jobs = read_jobs(path.read_text()) if path else []
    if not jobs:
        parser.exit(1, f"no finished job in {path or '.snakemake/log'}; a run with --quiet writes none\n")
    by_rule = defaultdict(list)
    for seconds, rule, _ in jobs:
        by_rule[rule].append(seconds)
    rows = [[rule, len(times), f"{sum(times):.0f}"] for rule, times in by_rule.items()]
    rows.sort(key=lambda row: -float(row[2]))
    total = sum(seconds for seconds, _, _ in jobs)
    print(tabulate([*rows, ["together", len(jobs), f"{total:.0f}"]], ["rule", "jobs", "seconds"]))
    print()
    longest = sorted(jobs, key=lambda job: -job[0])[:LONGEST]
    print(tabulate([[f"{s:.0f}", rule, of] for s, rule, of in longest], ["seconds", "longest jobs", "of"]))


if __name__ == "__main__":
    main()
