"""`python -m benchmarks.viewer PAGE`: how long a browser takes to open a viewer page.

PAGE is written by `--mode=view`. Headless Chromium draws it on the CPU, which is slower than any
graphics card: what it takes is an upper bound. Each round is a new browser. Beside wall time stands
the CPU time of the browser's processes, which says more on a machine that is not quiet. Needs Linux
and playwright (extra dev).
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks import machine

FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
REDRAWS = 3
DRAW = f"() => {{ for (let i = 0; i < {REDRAWS}; i++) viewer.drawScene(); }}"


def cpu_s() -> float:
    """CPU seconds of this process's living descendants."""
    parents, seconds = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(status.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ours(pid: int) -> bool:
        return pid in parents and (parents[pid] == os.getpid() or ours(parents[pid]))

    return sum(value for pid, value in seconds.items() if ours(pid))


def opened(page: Path) -> dict[str, float]:
    """Wall and CPU seconds to the first picture, and of drawing the planes, then the 3D view."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        start, before = time.perf_counter(), cpu_s()
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("body[data-ready]", timeout=600_000)
        result = {"open": time.perf_counter() - start, "open, CPU": cpu_s() - before}
        for view in ("Planes", "3D"):
            tab.get_by_role("button", name=view).click()
            start, before = time.perf_counter(), cpu_s()
            tab.evaluate(DRAW)
            result[view] = (time.perf_counter() - start) / REDRAWS
            result[f"{view}, CPU"] = (cpu_s() - before) / REDRAWS
        browser.close()
    return result


def main() -> None:
    """Prints the medians over the rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.viewer", description=__doc__)
    parser.add_argument("page", type=Path, help="FILE.html, written by --mode=view")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    others = machine.Others()
    rounds = [opened(options.page) for _ in range(options.rounds)]
    size, share = options.page.stat().st_size / 1e6, others.share()
    print(f"{options.page.name}, {size:.1f} MB, median of {options.rounds} rounds, seconds")
    for name in rounds[0]:
        print(f"  {name:10} {statistics.median(one[name] for one in rounds):7.2f}")
    print(f"  the browser and others used {share:.0%} of the cores" if share is not None else "")


if __name__ == "__main__":
    main()
