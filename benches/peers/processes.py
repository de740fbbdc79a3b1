"""A server's processes: started with a mark in their environment, by which all of them are found again and ended."""

import ctypes
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

MARK = "WEIR_PEERS_PROCESS"
PR_SET_PDEATHSIG = 1
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Who takes less than this share of a core, for so long, has settled.
SETTLED_S, SETTLED_SHARE = 0.25, 0.25
SETTLE_WITHIN_S = 10.0
LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def clean_environment() -> dict[str, str]:
    """This process's, without what would be flags of weir."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WEIR")}


class Processes:
    """What one command started, whatever became of the parents: a session of its own, so that the kernel shares the
    cores between it and the load, and not between all of its threads and the load."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, cwd: Path | None = None) -> None:
        self.mark = secrets.token_hex(16)
        self.log = log
        with log.open("ab") as out:
            self.first = subprocess.Popen(
                command,
                env=clean_environment() | env | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def pids(self) -> list[int]:
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    marked = wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if marked:
                    found.append(int(entry))
        return found

    def alive(self) -> bool:
        return self.first.poll() is None

    def cpu_s(self) -> tuple[float, float]:
        """Processor time until now: in ticks, threads that have ended included, and precisely, of those still there."""
        ticks = precise = 0.0
        for pid in self.pids():
            try:
                after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += (int(after_name[11]) + int(after_name[12])) * TICK_S
                for task in os.listdir(f"/proc/{pid}/task"):
                    precise += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) / 1e9
            except OSError:
                continue
        return ticks, precise

    def settle(self) -> None:
        """Waits until it has nothing left to do: some go on for those who no longer wait for an answer."""
        until, before = time.monotonic() + SETTLE_WITHIN_S, self.cpu_s()
        while time.monotonic() < until:
            time.sleep(SETTLED_S)
            after = self.cpu_s()
            if cpu_between(before, after) < SETTLED_SHARE * SETTLED_S:
                return
            before = after

    def memory_mb(self) -> float:
        """Resident memory; pages that several of its processes share count once."""
        total = 0
        for pid in self.pids():
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
            except OSError:
                continue
        return total / 1024

    def stop(self, patience_s: float = 10.0) -> None:
        """Asks the first, then ends whatever is left of them."""
        if self.alive():
            self.first.terminate()
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            self.first.poll()
            if not self.pids():
                break
            time.sleep(0.05)
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                try:
                    os.kill(pid, sent)
                except ProcessLookupError:
                    pass
            until = time.monotonic() + 3
            while self.pids() and time.monotonic() < until:
                self.first.poll()
                time.sleep(0.05)
        self.first.wait(timeout=5)

    def last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def cpu_between(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Seconds of processor: ticks are coarse, and what is precise lacks threads that have ended."""
    return max(after[0] - before[0], after[1] - before[1])
