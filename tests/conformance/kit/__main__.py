"""`python -m tests.conformance.kit [NUMBER …]`: run the cases and say how many pass.

Against the server that BASE_URL and API_KEY name, or, without them, against an Overnight that is
started for it. Numbers choose cases: `3`, `3.33` or `3.33.1`. Further variables, all optional:

API_KEY_2           a key of another project, for the cases of isolation
MODEL               the model of the lines (default: the first that the server lists)
MODEL_EMBEDDINGS    the model of one endpoint; also _RESPONSES, _COMPLETIONS, _MODERATIONS,
                    _IMAGE_GENERATIONS, _IMAGE_EDITS, _VIDEOS
WEBHOOK_HOST        an address of this machine that the server can reach (default: 127.0.0.1)
PATIENCE_SECONDS    how long a batch may take (default: 90)
"""

import os
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.conformance.kit.catalogue import ALL
from tests.conformance.kit.own import own_server, subject_at
from tests.conformance.kit.report import run_cases, write_outcomes
from tests.conformance.kit.subject import Subject


@contextmanager
def _subject() -> Iterator[Subject]:
    if os.environ.get("BASE_URL"):
        if not os.environ.get("API_KEY"):
            sys.exit("BASE_URL is set, but API_KEY is not")
        with closing(subject_at(os.environ["BASE_URL"], dict(os.environ))) as server:
            yield server
        return
    with (
        tempfile.TemporaryDirectory(prefix="overnight-kit-") as folder,
        own_server(Path(folder)) as server,
    ):
        yield server


def main() -> int:
    """Run what is asked for; 1 if a case fails, 0 if none does."""
    parser = ArgumentParser(
        prog="conformance", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", help="which cases: 3, 3.33 or 3.33.1 (default: all)")
    parser.add_argument("--write", type=Path, help="keep the outcomes in this file")
    parser.add_argument("--list", action="store_true", help="name the cases, and run none")
    options = parser.parse_args()
    chosen = [
        case
        for case in ALL
        if not options.numbers
        or any(f"{case.number}.".startswith(f"{number}.") for number in options.numbers)
    ]
    if options.list:
        for case in chosen:
            print(f"{case.number:8} {case.title}")
        return 0
    with _subject() as server:
        print(f"{len(chosen)} cases against {server.base_url}", flush=True)
        server.begin()
        outcomes = run_cases(chosen, server, lambda line: print(line, flush=True))
    if options.write is not None:
        write_outcomes(options.write, outcomes)
    return int(any(outcome.verdict == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
