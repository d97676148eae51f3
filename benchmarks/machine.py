"""What machine this is, and whether anybody else was using it, as Linux's /proc tells."""

import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def describe(threads: int | None) -> dict:
    """Device, versions of the system, and date: what a reader needs in order to judge a number."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads or len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": sys.version.split()[0],
    }


def _processor() -> str:
    """Its name, and which generation it is: in virtual machines many have one name."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", "unknown")
    return f"{name}, family {facts['cpu family']}" if "cpu family" in facts else name


def other_programs_share(own: list[int]) -> Callable[[], float]:
    """A clock: called later, it says which share of all cores programs other than the processes `own` took.

    Times taken while others compute are no times. The busy ticks of the whole machine less those of `own`.
    """

    def read() -> tuple[float, float]:
        user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        )
        busy = user + nice + system + interrupts + soft_interrupts + stolen
        return busy - sum(map(_ticks, own)), busy + idle + waiting

    others_before, all_before = read()

    def share() -> float:
        others, everything = read()
        return max(0.0, others - others_before) / max(1.0, everything - all_before)

    return share


def _ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
