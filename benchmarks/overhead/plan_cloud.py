"""The guest's first boot (cloud-init), and the same arms as OpenStack flavors and image properties."""

import shlex
from collections.abc import Sequence

import yaml

from privbench.benchmarks.overhead.plan_arms import Arm
from privbench.benchmarks.overhead.plan_machine import Machine

USER = "privbench"
HOME = "/opt/privbench"
QUIET = ("apt-daily.timer", "apt-daily-upgrade.timer", "dnf-makecache.timer", "fstrim.timer", "man-db.timer")
"""Timers of distributions that would work while something is measured."""

IMAGE_PROPERTIES = {
    "hw_firmware_type": "uefi",
    "hw_firmware_stateless": "true",  # SEV-SNP asks for it, so all arms have it
    "hw_machine_type": "q35",
    "hw_disk_bus": "virtio",
    "hw_vif_model": "virtio",
    "hw_rng_model": "virtio",
}
"""https://docs.openstack.org/nova/latest/admin/sev.html: what SEV guests need. One image serves all arms."""


def user_data() -> str:
    """cloud-init's ``user-data``: the user that measures, what Python needs, and nothing that runs by itself later."""
    config = {
        "user": {"name": USER, "sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash", "lock_passwd": True},
        "users": ["default"],
        "package_update": True,
        "packages": ["python3-venv"],
        "runcmd": [
            *(["sh", "-c", f"systemctl disable --now {timer} || true"] for timer in QUIET),
            ["python3", "-m", "venv", HOME],
            ["touch", f"{HOME}/ready"],
        ],
    }
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False)


def flavor_properties(machine: Machine, arm: Arm) -> dict[str, str]:
    """The extra specs of an arm's flavor; those of protection come last."""
    pages = {"none": "small", "2M": "2MB", "1G": "1GB"}[machine.hugepages]
    shared = {
        "hw:cpu_policy": "dedicated",
        "hw:cpu_threads": "1",
        "hw:numa_nodes": "1",
        "hw:mem_page_size": pages,
        "hw:locked_memory": "true",
    }
    protection = {} if arm.nova is None else {"hw:mem_encryption": "true", "hw:mem_encryption_model": arm.nova}
    return {**shared, **protection}


def openstack(machine: Machine, arms: Sequence[Arm]) -> str:
    """A shell script that makes the image and a flavor for each arm; run once, by somebody who may make flavors."""
    image = " ".join(f"--property {key}={value}" for key, value in IMAGE_PROPERTIES.items())
    lines = [
        "#!/bin/sh",
        "# Makes the image and the flavors of the arms. Arguments: the prepared disk (qcow2).",
        "set -eu",
        f'openstack image create privbench --disk-format qcow2 --file "$1" {image}',
    ]
    for arm in arms:
        if not arm.openstack:
            lines.append(f"# {arm.name}: not with Nova: no flavor sets the guest's kernel command line ({arm.append}).")
            continue
        specs = " ".join(f"--property {shlex.quote(f'{k}={v}')}" for k, v in flavor_properties(machine, arm).items())
        size = f"--vcpus {len(machine.pinned)} --ram {machine.memory} --disk 20"
        lines.append(f"openstack flavor create privbench-{arm.name} {size} {specs}")
    return "\n".join(lines) + "\n"
