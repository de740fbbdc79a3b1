"""Which node a call goes to, and whether it is tried again: as the Rust client does it (core/src/call)."""

from __future__ import annotations

import random
from dataclasses import dataclass

ATTEMPTS_MAX = 3
#: Each first attempt earns a part of a retry; a cluster in trouble is not asked much more than it would be without retries.
RETRY_RATIO = 0.1
RETRY_BURST = 20.0
FAILURES_TO_EJECT = 5
EJECTED_FOR = 1.0
EJECTED_FOR_AT_MOST = 30.0
BACK_OFF = 0.005

#: Rejections that another node, or a moment later, may not repeat.
PASSING = ("queueFull", "noReplica", "draining")


@dataclass
class Node:
    in_flight: int = 0
    #: Of answers, in seconds, smoothed.
    delay: float = 0.0
    failures: int = 0
    ejections: int = 0
    ejected_until: float | None = None
    probing: bool = False


class Balancer:
    """Of two nodes drawn by chance the one with less to do, of those that have what a query begins with while one is there; nodes that
    fail are left out for a while."""

    def __init__(self, seed: int | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self._retries = RETRY_BURST
        self._random = random.Random(seed)

    def set_nodes(self, names: list[str]) -> None:
        self.nodes = {name: self.nodes.get(name, Node()) for name in names}

    def pick(self, now: float, hosts: list[str], tried: list[str]) -> str | None:
        for name, node in self.nodes.items():
            if not node.probing and node.ejected_until is not None and node.ejected_until <= now and name not in tried:
                node.probing = True
                return name
        healthy = [name for name, node in self.nodes.items() if node.ejected_until is None]
        untried = [name for name in healthy if name not in tried]
        pool = [name for name in untried if name in hosts] or untried or healthy or list(self.nodes)
        if not pool:
            return None
        two = self._random.sample(pool, min(2, len(pool)))
        fastest = min((node.delay for node in self.nodes.values() if node.delay > 0), default=1.0)
        return min(two, key=lambda name: (self.nodes[name].in_flight + 1) * (self.nodes[name].delay or fastest))

    def on_sent(self, name: str, attempt: int) -> None:
        if attempt == 1:
            self._retries = min(self._retries + RETRY_RATIO, RETRY_BURST)
        if name in self.nodes:
            self.nodes[name].in_flight += 1

    def on_dropped(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[name].in_flight = max(0, self.nodes[name].in_flight - 1)
            self.nodes[name].probing = False

    def on_outcome(self, now: float, name: str, outcome: str, rejection: str | None, took: float) -> bool:
        """Whether its connection should be made anew."""
        node = self.nodes.get(name)
        if node is None:
            return False
        node.in_flight = max(0, node.in_flight - 1)
        probed, node.probing = node.probing, False
        failed = outcome in ("unknown", "failed") or (outcome == "rejected" and rejection in ("noReplica", "draining"))
        if not failed:
            if outcome == "answered":
                node.delay = took if node.delay == 0.0 else 0.9 * node.delay + 0.1 * took
            node.failures, node.ejections, node.ejected_until = 0, 0, None
            return False
        node.failures += 1
        ejected = sum(known.ejected_until is not None for known in self.nodes.values())
        may_eject = len(self.nodes) > 1 and ejected < max(1, len(self.nodes) // 3)
        eject = probed if node.ejected_until is not None else node.failures >= FAILURES_TO_EJECT and may_eject
        if eject:
            node.ejected_until = now + min(EJECTED_FOR * (1 << min(node.ejections, 5)), EJECTED_FOR_AT_MOST)
            node.ejections += 1
        return eject

    def may_retry(self, attempt: int, outcome: str, rejection: str | None, left: float) -> float | None:
        """How long to wait before the next attempt; none where there is none."""
        worth_it = outcome == "unknown" or (outcome == "rejected" and rejection in PASSING)
        wait = BACK_OFF * (1 << min(attempt, 8)) / 2 * self._random.random()
        if not worth_it or attempt >= ATTEMPTS_MAX or self._retries < 1.0 or wait >= left:
            return None
        self._retries -= 1.0
        return wait
