"""Plan: how many trials run at the same time, and where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

# A CPU runs a large step at full speed, and a batch of products slower than one after the other; of a small step most
# of the time goes into starting its operations, which trials side by side share. Measured: benchmarks/results/sweep.md.
CPU_FLOPS = 1e6  # steps of fewer operations are small
CPU_WIDTH = 16
# What a step needs beside its state: gradients and updates, each as large as the parameters, and activations.
FIRST_GUESS = 3


class Plan(NamedTuple):
    """Groups of `width` trials on each device, and so many groups at the same time, each in a thread."""

    devices: Sequence[Any]
    width: int
    workers: int
    why: str

    def __str__(self) -> str:
        kind, several = self.devices[0].platform, len(self.devices)
        where = f"each of {several} {kind} devices" if several > 1 else f"{kind}:{self.devices[0].id}"
        way = "one after the other" if self.width == 1 else f"{self.width} side by side (vmap)"
        threads = f" in each of {self.workers} threads" if self.workers > 1 else ""
        return f"{way} on {where}{threads}: {self.why}"


def planned(trials: int, devices: Sequence[Any], flops: float, state_bytes: int, memory: int, cores: int) -> Plan:
    """The plan for steps of so many operations, and states of so many bytes, within `memory` bytes a device."""
    devices = devices[:trials]
    fitting = max(1, memory // max(1, FIRST_GUESS * state_bytes))
    workers = 1
    if devices[0].platform == "cpu":
        paying = CPU_WIDTH if flops < CPU_FLOPS else 1
        why = f"a step of {flops / 1e6:.3g} MFLOP"
        if len(devices) == 1:  # several devices are run by threads of their own
            workers = max(1, min(cores, trials, fitting))
    else:
        paying, why = trials, "an accelerator is filled by many trials"
    most = min(fitting // workers, paying)
    if most < min(paying, trials):
        why = f"{memory / 2**20:.3g} MiB of memory"
    return Plan(devices, even(trials, len(devices) * workers, most), workers, why)


def narrower(plan: Plan, trials: int, used: int, memory: int) -> Plan | None:
    """A plan that fits where a compiled one does not; None where it fits, or nothing can be done."""
    used *= plan.workers
    if used <= memory or plan.width * plan.workers == 1:
        return None
    most = max(1, min(plan.width * plan.workers - 1, plan.width * plan.workers * memory // used))
    workers = min(plan.workers, most)
    why = f"{memory / 2**20:.3g} MiB of memory; compiled anew, {plan.width} would have taken {used / 2**20:.3g} MiB"
    return Plan(plan.devices, even(trials, len(plan.devices) * workers, most // workers), workers, why)


def even(trials: int, devices: int, most: int) -> int:
    """The width, of at most so many, that leaves the fewest places empty in the last group."""
    groups = -(-trials // (devices * most))
    return -(-trials // (devices * groups))


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: Any) -> int:
    """Half of the bytes that are free on a device."""
    stats: Any = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):  # not on every system
        return 2 << 30
