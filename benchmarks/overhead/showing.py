"""A record in lines of text."""

import statistics
from collections.abc import Iterator
from typing import Any

from privbench.benchmarks.overhead import detect, proof
from privbench.benchmarks.overhead.record import Record, key

_SCALES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))
_RATES = {"bytes": (1e9, "GB/s"), "operations": (1e9, "Gop/s")}


def line(measurement: dict[str, Any]) -> str:
    """One measurement: median of a call's wall time, its quartiles, rate, and what is to be doubted."""
    name = key(measurement)
    if measurement["status"] == "unavailable":
        return f"{name:52} not measured: {measurement['reason']}"
    calls = [t / measurement["calls"] for t in measurement["wall_ns"]]
    # Of a single repeat, which a record from elsewhere may have, there are no quartiles.
    low, middle, high = statistics.quantiles(calls, n=4, method="inclusive") if len(calls) > 1 else calls * 3
    scale, unit = next((s, u) for s, u in _SCALES if middle >= s or s == 1)
    shown = f"{name:52} {middle / scale:9.3f} {unit:2} [{low / scale:.3f}, {high / scale:.3f}] of {len(calls)}"
    work = measurement["work"]
    if work["unit"] in _RATES:
        by, rate = _RATES[work["unit"]]
        shown += f"  {work['amount'] / middle * 1e9 / by:.2f} {rate}"
    return shown + "".join(f"\n    doubtful: {why}" for why in measurement["doubts"])


def lines(record: Record) -> Iterator[str]:
    """A whole record."""
    machine = record["machine"]
    cpu, kernel, memory, place = machine["cpu"], machine["kernel"], machine["memory"], machine["place"]
    yield f"arm {record['arm']}, boot {record['boot']}, {record['created']}, set {record['set']}"
    yield f"{cpu['model_name'] or 'unknown processor'}, {cpu['logical']} processors, microcode {cpu['microcode']}"
    yield f"Linux {kernel['release']}, hypervisor {place['hypervisor'] or 'unknown'}, container {place['container']}"
    total = memory["total_bytes"]
    yield (
        f"memory {'unknown' if total is None else f'{total / 2**30:.1f} GiB'}, transparent huge pages "
        f"{memory['transparent_huge_pages']}, governor {cpu['governor'] or 'unknown'}"
    )
    for gpu in machine["gpus"] or ():
        yield f"{gpu['name']}: confidential computing {gpu['feature'] or 'unknown'} ({gpu['environment'] or 'unknown'})"
    rule = record["stop_rule"]
    yield f"until {rule['repeats']} repeats or {rule['seconds']:g} s of a case, after {rule['warmup']} warm-up repeats"
    yield ""
    yield "signs of protection, strongest first:"
    for sign in record["signs"]:
        found = {True: "yes", False: "no", None: "unknown"}[sign["found"]]
        yield f"  {sign['strength']:10} {found:8}{sign['name']}: {sign['says']}"
    yield ""
    yield "median of a call [quartiles] of repeats:"
    for one in record["measurements"]:
        yield line(one)
    yield ""
    yield from worth(record)


def worth(record: Record) -> list[str]:
    """What the record is worth: its proof, and how quiet the machine was."""
    found, during = proof.proven(record), record["load"]
    said = [f"assurance {found.assurance}: {found.reason}"]
    if found.assurance == "none":
        said.append(f"what this kernel says of itself, which is no proof: {detect.claimed(record['signs'])}")
    elif found.assurance != "software":
        said.append("the report binds this record to a guest; its times are that guest's word")
    if during["others"] is None:
        said.append("how much else the machine did isn't known")
    else:
        steal = "unknown" if during["steal"] is None else f"{during['steal']:.0%}"
        said.append(f"others took {during['others']:.0%} of the machine meanwhile, its host {steal}")
    doubted = sum(bool(one["doubts"]) for one in record["measurements"])
    if doubted:
        said.append(f"{doubted} of {len(record['measurements'])} measurements are doubtful, as said at each")
    return said
