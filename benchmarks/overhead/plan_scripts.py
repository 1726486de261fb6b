"""The scripts of a plan: prepare the image once, then take the boots in the order of the schedule."""

from string import Template

from privbench.benchmarks.overhead.plan_cloud import HOME, USER
from privbench.benchmarks.overhead.plan_domain import MAC, OVERLAY
from privbench.benchmarks.overhead.plan_machine import Machine

SECONDS = 600
"""Of repeats of one workload: more than any takes, so that the number of repeats ends it."""

_SSH = (
    "-i key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
    "-o ConnectTimeout=5"
)

_PREPARE = Template("""\
#!/bin/sh
# Once, before all boots: makes the disk, the kernel and the initrd that every arm starts from.
# Arguments: a distribution's cloud image with cloud-init (qcow2), and the wheel of privbench (make wheel).
# The guest's Python has to be one that privbench runs on. Needs qemu-img, cloud-localds, ssh and root.
set -eu
cloud=$$1 wheel=$$2
cd "$$(dirname "$$0")"
[ -e key ] || ssh-keygen -q -t ed25519 -N '' -f key
guest() { ssh $ssh -p $port $user@127.0.0.1 "$$@"; }
mkdir -p "$folder"
qemu-img convert -O qcow2 "$$cloud" "$image"
qemu-img resize "$image" 20G
printf 'instance-id: privbench\\npublic-keys:\\n  - %s\\n' "$$(cat key.pub)" > cloud-init/meta-data
cloud-localds "$folder/seed.img" cloud-init/user-data cloud-init/meta-data
qemu-system-x86_64 -accel kvm -cpu host -machine q35 -m 4096 -smp 4 -bios "$firmware" -display none \\
  -drive file="$image",if=virtio -drive file="$folder/seed.img",if=virtio,format=raw \\
  -netdev user,id=net0,hostfwd=tcp:127.0.0.1:$port-:22 -device virtio-net-pci,netdev=net0,mac=$mac &
until guest test -e $home/ready 2> /dev/null; do sleep 5; done
scp $ssh -P $port "$$wheel" $user@127.0.0.1:
guest sudo $home/bin/pip install "$$(basename "$$wheel")"
guest $home/bin/pip freeze > packages.txt
guest 'sudo cat /boot/vmlinuz-$$(uname -r)' > "$kernel"
guest 'sudo cat /boot/initrd.img-$$(uname -r)' > "$initrd"
guest sudo poweroff || true
wait
chmod a-w "$image" "$kernel" "$initrd"
sha256sum "$image" "$kernel" "$initrd" "$firmware" > sha256.txt
""")

_BOOTS = Template("""\
#!/bin/sh
# Takes the boots of schedule.csv in order, as root. Those whose record is there are left out: run again, it goes on.
# Argument: libvirt or qemu, the same for all boots.
set -eu
launcher=$$1
cd "$$(dirname "$$0")"
case $$launcher in libvirt | qemu) ;; *) echo "launcher=$$launcher: libvirt or qemu" >&2; exit 2 ;; esac
sha256sum --quiet --check sha256.txt
guest() { ssh $ssh -p $port $user@127.0.0.1 "$$@" < /dev/null; }
ended() {
  echo "boot $$number ($$arm): $$1" >&2
  if [ "$$launcher" = libvirt ]; then virsh destroy "privbench-$$arm"; else kill "$$pid"; fi
  exit 1
}
mkdir -p records
tail -n +2 schedule.csv | while IFS=, read -r number _ arm _ record; do
  [ -e "$$record" ] && continue
  rm -f "$overlay"
  qemu-img create -q -f qcow2 -b "$image" -F qcow2 "$overlay"
  # Each boot finds the host's memory alike: no cached files, free pages together.
  sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory
  if [ "$$launcher" = libvirt ]; then
    virsh --quiet create "libvirt/$$arm.xml"
  else
    "qemu/$$arm.sh" < /dev/null & pid=$$!
  fi
  tries=0
  until guest true 2> /dev/null; do
    tries=$$((tries + 1))
    [ $$tries -lt 120 ] || ended "no answer in 10 minutes"
    sleep 5
  done
  guest $registers || echo "boot $$number ($$arm): the processor's register can't be read" >&2
  sleep 60
  status=0
  guest $record || status=$$?
  # 1: a case failed, or no report was to be had. The record says so itself, and is kept.
  [ $$status -le 1 ] || ended "no record, status $$status"
  guest sudo cat $home/record.json > "$$record.part" || ended "its record can't be fetched"
  mv "$$record.part" "$$record"
  guest sudo poweroff || true
  if [ "$$launcher" = libvirt ]; then
    while virsh domstate "privbench-$$arm" > /dev/null 2>&1; do sleep 2; done
  else
    wait "$$pid" || true
  fi
  echo "boot $$number ($$arm) done"
done
""")


REGISTERS = "sudo modprobe msr"
"""The strongest sign of SEV and SEV-ES is a register that can be read only with this module of the kernel's."""


def record(repeats: int, arm: str) -> str:
    """The command that measures within the guest; of all arms the same but for the arm's name."""
    # Guests get no certificates from QEMU, so a report's are AMD's key service's. Temporary folders may be a tmpfs.
    network = "network=true workloads.attestation.network=true"
    settings = f"arm={arm} repeats={repeats} seconds={SECONDS} scratch={HOME} {network}"
    return f"sudo {HOME}/bin/privbench overhead record --out {HOME}/record.json {settings}"


def prepare(machine: Machine) -> str:
    """Makes the image; a shell script."""
    return _PREPARE.substitute(_names(machine))


def boots(machine: Machine) -> str:
    """Takes the boots; a shell script."""
    return _BOOTS.substitute(_names(machine), registers=REGISTERS, record=record(machine.repeats, '"$arm"'))


def _names(machine: Machine) -> dict[str, object]:
    paths = {name: getattr(machine, name) for name in ("image", "kernel", "initrd", "firmware")}
    folder = machine.image.rpartition("/")[0] or "/"
    return {
        "ssh": _SSH,
        "user": USER,
        "home": HOME,
        "port": machine.port,
        "overlay": OVERLAY,
        "folder": folder,
        "mac": MAC,
        **paths,
    }
