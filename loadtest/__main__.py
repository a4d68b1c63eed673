"""`python -m loadtest`: parses the command line, measures, writes the results and prints them.

Exit codes: 0 the rate holds; 1 it does not, or the test broke down; 2 the command line or a file
is wrong, or no connection can be made; 130 Ctrl-C or SIGTERM ended the process.
"""

from loadtest.interrupt import end_on_signal

if __name__ == "__main__":
    end_on_signal("Stopped.")  # before the imports below, which are slow

import argparse
import sys

from loadtest.arguments import build_parser, limits_from, out_folder, plan_from
from loadtest.errors import LoadTestError
from loadtest.headers import read_headers


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return _execute(options)
    except LoadTestError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_code


def _execute(options: argparse.Namespace) -> int:
    plan = plan_from(options)
    limits = limits_from(options) if options.verb != "run" else None
    needs_service = options.verb != "ceiling"
    headers = read_headers(options.header, options.api_key_env) if needs_service else {}

    # These import numpy, matplotlib and LoadGen. At the top of the file they would slow --help.
    from rich.console import Console

    from loadtest.queries import load_queries
    from loadtest.reach import check_reachable
    from loadtest.report import write_report
    from loadtest.target import Target
    from loadtest.terminal import show_result, show_step
    from loadtest.verbs import Session, find_ceiling, run, saturate

    load_queries(plan.queries)  # reports a bad file before the worker process starts
    if needs_service:
        check_reachable(Target.parse(plan.url))
    progress = Console(stderr=True)
    session = Session(
        out=out_folder(options),
        on_step=lambda step: show_step(progress, step),
        with_ceiling=not getattr(options, "no_ceiling", False),
        headers=headers,
    )
    if limits is None:
        result = run(plan, session)
    elif options.verb == "saturate":
        result = saturate(plan, limits, session)
    else:
        result = find_ceiling(plan, limits, session)
    result.write(session.out)
    report = write_report(result, session.out)
    console = Console()
    show_result(console, result)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
