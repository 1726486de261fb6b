"""What a person does with a plan, in the order it is done."""

from collections.abc import Sequence
from string import Template

from privbench.benchmarks.overhead.plan_arms import BASE, Arm
from privbench.benchmarks.overhead.plan_cloud import USER
from privbench.benchmarks.overhead.plan_machine import Machine
from privbench.benchmarks.overhead.plan_schedule import Boot
from privbench.benchmarks.overhead.plan_scripts import REGISTERS, record

_TEXT = Template("""\
# Take the arms

$count boots on one host, from one image. Arms differ in what protects them and in nothing else:

| arm | launched as | guest policy | adds to the kernel's command line | what it tells |
|---|---|---|---|---|
$arms

## The host

- An AMD EPYC of the third generation (Milan) or later, with SEV-SNP on in the firmware; Linux 6.11 or later
  (`kvm_amd.sev_snp=1`), QEMU 9.1 or later, libvirt 10.5 or later with passt (or QEMU alone), and an OVMF that runs
  as `-bios` under SEV-SNP in `$firmware`.
- `cat /sys/module/kvm_amd/parameters/sev_snp` says `Y`. The encryption bit is in CPUID 0x8000001F
  (`cpuid -1 -l 0x8000001f`): this plan presumes bit $cbitpos and $reduced lost address bits.
- Processors $cpus belong to NUMA node $node (`lscpu -e`), and nothing else runs on them (`isolcpus`, `nohz_full` or a
  cpuset). A fixed frequency (`cpupower frequency-set -g performance`, no boost) makes boots more alike.
- Free memory of that node: twice the guest's $memory MiB. Under SEV-SNP a guest's private pages lie beside the shared
  ones until the kernel drops those.
$pages
## Once

    make wheel                                   # in a checkout of privbench
    ./prepare.sh CLOUD_IMAGE.qcow2 privbench-VERSION.whl

Any image with cloud-init whose `/boot` has `vmlinuz-*` and `initrd.img-*` (Debian, Ubuntu) and whose root file system
is the one of `$append`. It must not change afterwards: `boots.sh` compares it with `sha256.txt`.

## All boots

    ./boots.sh libvirt                           # or: ./boots.sh qemu

They come in blocks in which each arm is booted twice, in a random order and then in its reverse (`schedule.csv`), so
that what changes slowly falls on all arms alike. In each boot this is run in the guest, the second line after a minute:

    $registers
    $record

A record without a report doesn't prove its arm. Guests get no certificates from QEMU: they need a way to AMD's key
service (kdsintf.amd.com; the user network of these arms has one if the host does), or the processor's certificates in
the image, in `~root/.cache/privbench/amd` (docs/attestation.md; make `sha256.txt` anew). Where a case fails or no
report is to be had, `boots.sh` shows it, keeps the record and goes on.

Stopped, the script goes on where it was, once no guest of it runs any more. Take all boots with one launcher: under
libvirt processors are pinned one to one, with QEMU alone as a set.

## Compare

    privbench overhead compare $compared

`again` is `$base` a second time, the null. Where its interval is wide or leaves 1, the machine was noisy, and no other
ratio means more than that one.

## On an OpenStack

`openstack/create.sh DISK.qcow2` makes the image and a flavor per arm (`hw:mem_encryption`, `hw:mem_encryption_model`;
`amd-sev-es` and `amd-sev-snp` need a Nova that knows them, and a compute host that offers them). Start the boots in the
order of `schedule.csv`, one at a time and all on one host:

    openstack --os-compute-api-version 2.74 server create --host HOST --flavor privbench-ARM --image privbench \\
      --key-name KEY --network NETWORK --wait privbench-NUMBER

log in as `$user`, run the two commands above, fetch the record, and delete the server. Compute hosts keep other guests
too: the null says how much that matters.

## What else separates causes

Two more arms need the host itself booted anew, with the same plan taken in each state: SEV-SNP off on the host
(`kvm_amd.sev_snp=0`, and off in the firmware), whose cost plain guests bear as well; and transparent SME (TSME) off in
the firmware.
""")


def readme(machine: Machine, arms: Sequence[Arm], order: Sequence[Boot]) -> str:
    """The plan's README.md."""
    rows = [
        f"| `{a.name}` | {a.launch} | {'—' if a.policy is None else hex(a.policy)} | {a.append or '—'} | {a.tells} |"
        for a in arms
    ]
    names = [BASE, *(a.name for a in arms if a.name != BASE)]
    return _TEXT.substitute(
        count=len(order),
        arms="\n".join(rows),
        firmware=machine.firmware,
        cbitpos=machine.cbitpos,
        reduced=machine.reduced_phys_bits,
        cpus=machine.cpus,
        node=machine.node,
        memory=machine.memory,
        pages=_pages(machine),
        registers=REGISTERS,
        record=record(machine.repeats, "ARM"),
        base=BASE,
        append=machine.append,
        compared=" ".join(f"records/*-{name}.json" for name in names),
        user=USER,
    )


def _pages(machine: Machine) -> str:
    if machine.hugepages == "none":
        return ""
    size = {"2M": 2, "1G": 1024}[machine.hugepages]
    return (
        f"- {machine.memory // size} free huge pages of {machine.hugepages} on that node. A kernel that can't take a "
        "SEV-SNP guest's private memory (guest_memfd)\n  from huge pages backs it with small ones: the ratio then "
        "holds what huge pages save, too. Take a plan without them as well.\n"
    )
