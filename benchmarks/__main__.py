"""python -m benchmarks [NAME ...] [--runs N] [--quick] [--list] [--page]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine, report
from benchmarks.appends import APPENDS
from benchmarks.audit import AUDIT
from benchmarks.clone import CLONE, CLONE_MANY
from benchmarks.contenders import PeerMissing
from benchmarks.feed import FEED
from benchmarks.fetch import FETCH
from benchmarks.figures import Benchmark
from benchmarks.grants import GRANTS
from benchmarks.growth import GROWTH
from benchmarks.herd import HERD
from benchmarks.idle import IDLE
from benchmarks.ids import IDS
from benchmarks.lateness import LATENESS
from benchmarks.outage import OUTAGE
from benchmarks.packs import PACKS
from benchmarks.peers import PEERS
from benchmarks.place import Place, run
from benchmarks.push import PUSH
from benchmarks.reclaims import RECLAIMS
from benchmarks.replicas import REPLICAS_LOCAL, REPLICAS_S3
from benchmarks.restart import RESTART
from benchmarks.slow_clients import SLOW_CLIENTS
from benchmarks.small_pushes import SMALL_PUSHES
from gateway.demo.rados_gateway import RadosGatewayMissing

ALL = {
    one.name: one
    for one in (
        *(APPENDS, GRANTS, RECLAIMS, PACKS, PUSH, FETCH, HERD, IDS),
        *(CLONE, CLONE_MANY),
        *(IDLE, LATENESS, FEED, SLOW_CLIENTS),
        *(GROWTH, SMALL_PUSHES),
        *(REPLICAS_LOCAL, REPLICAS_S3, RESTART, OUTAGE, AUDIT, PEERS),
    )
}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument("--list", action="store_true", help="name them and do nothing")
    parser.add_argument("--quick", action="store_true", help="see that they run; keeps no figures")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--page", action="store_true", help="write the kept figures into the docs")
    parser.add_argument("--folder", type=Path, help="where the data lies meanwhile")
    parser.add_argument("--repository", type=Path, help="a Git repository for the clones")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    return parser


async def _measured(benchmark: Benchmark, place: Place, *, runs: int) -> report.Result:
    facts = machine.facts(place.folder, postgres_version=await place.postgres_version())
    found = [await benchmark.run(place) for _ in range(1 if place.quick else runs)]
    return report.result_of(benchmark, found, facts, quick=place.quick)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; ends with an exception when something could not be measured."""
    parser = _options()
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - ALL.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if options.list:
        for benchmark in ALL.values():
            print(f"{benchmark.name:12} {benchmark.about}")
        return
    if options.page:
        report.write_page()
        return
    folder = options.results or (None if options.quick else report.RESULTS)
    repository = options.repository and options.repository.resolve()
    with Place(options.folder, quick=options.quick, repository=repository) as place:
        for name in options.names or ALL:
            try:
                result = run(_measured(ALL[name], place, runs=options.runs))
            except (PeerMissing, RadosGatewayMissing) as missing:
                if options.names:
                    raise
                print(f"{name}: left out. {missing}\n", flush=True)
                continue
            print(report.table(result), flush=True)
            if folder:
                report.keep(result, folder)


if __name__ == "__main__":
    main()
