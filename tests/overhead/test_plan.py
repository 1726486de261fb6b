"""``privbench overhead plan``: arms that differ in nothing but their protection, in an order that is fair to each."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from privbench.benchmarks.build import ConfigError
from privbench.benchmarks.overhead.command import overhead
from privbench.benchmarks.overhead.plan_arms import ARMS, choose
from privbench.benchmarks.overhead.plan_cloud import flavor_properties, user_data
from privbench.benchmarks.overhead.plan_domain import domain
from privbench.benchmarks.overhead.plan_machine import Machine, processors
from privbench.benchmarks.overhead.plan_qemu import command
from privbench.benchmarks.overhead.plan_schedule import schedule
from privbench.benchmarks.overhead.plan_schema import schemas, validate
from privbench.benchmarks.overhead.record_command import compose
from privbench.benchmarks.overhead.recording import checked
from privbench.benchmarks.overhead.workloads.attestation import Attestation

NAMES = [a.name for a in ARMS]


def arm(name: str) -> Any:
    return next(a for a in ARMS if a.name == name)


def test_each_block_has_each_arm_twice_at_the_same_mean_place():
    boots = schedule(NAMES, 6, seed=3)
    assert [b.number for b in boots] == list(range(1, 37))
    for block in (1, 2, 3):
        inside = [b for b in boots if b.block == block]
        order = [b.arm for b in inside]
        assert order == order[::-1]
        assert set(Counter(order).values()) == {2}
    for name in NAMES:
        assert [b.boot for b in boots if b.arm == name] == [1, 2, 3, 4, 5, 6]


def test_a_drift_that_grows_evenly_falls_on_all_arms_alike():
    boots = schedule(NAMES, 8, seed=1)
    means = {n: sum(b.number for b in boots if b.arm == n) / 8 for n in NAMES}
    assert len(set(means.values())) == 1


def test_the_order_follows_the_seed_and_changes_between_blocks():
    assert schedule(NAMES, 6, 5) == schedule(NAMES, 6, 5)
    assert schedule(NAMES, 6, 5) != schedule(NAMES, 6, 6)
    firsts = {b.arm for b in schedule(NAMES, 40, 0) if b.number % (2 * len(NAMES)) == 1}
    assert len(firsts) > 2


@pytest.mark.parametrize(("boots", "arms"), [(5, NAMES), (4, NAMES), (6, ["plain"]), (6, ["plain", "plain"])])
def test_too_few_boots_or_arms_are_refused(boots, arms):
    with pytest.raises(ConfigError):
        schedule(arms, boots, 0)


def stripped(text: str) -> str:
    """A domain without what arms may differ in."""
    root = ET.fromstring(text)
    for path in ("name", "launchSecurity", "os/cmdline"):
        for parent in root.iter():
            for child in parent.findall(path.rpartition("/")[2]):
                parent.remove(child)
    return "".join(ET.tostring(root, encoding="unicode").split())


@pytest.mark.parametrize("pages", ["none", "2M", "1G"])
def test_domains_are_the_same_but_for_the_protection(pages):
    machine = Machine(hugepages=pages)
    domains = {a.name: domain(machine, a) for a in ARMS}
    assert len({stripped(text) for text in domains.values()}) == 1
    launched = {n: ET.fromstring(text).find("launchSecurity") for n, text in domains.items()}
    assert [n for n, found in launched.items() if found is None] == ["plain", "again", "swiotlb"]
    kinds = {n: (found.get("type"), found.findtext("policy")) for n, found in launched.items() if found is not None}
    assert kinds == {"sev": ("sev", "0x3"), "sev_es": ("sev", "0x7"), "sev_snp": ("sev-snp", "0x30000")}
    lines = {n: ET.fromstring(text).findtext("os/cmdline") for n, text in domains.items()}
    assert {n for n, line in lines.items() if line != machine.append} == {"swiotlb"}
    assert lines["swiotlb"] == f"{machine.append} swiotlb=force"


def test_qemu_differs_in_the_protection_alone():
    machine = Machine(cpus="0,2,4,6", hugepages="2M")
    plain, snp = (command(machine, arm(n)) for n in ("plain", "sev_snp"))
    more = [word for word in snp if word not in plain]
    assert more == [
        "guest=privbench-sev_snp,debug-threads=on",
        "q35,memory-backend=ram0,vmport=off,hpet=off,confidential-guest-support=sev0",
        "sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000",
    ]
    assert len(snp) == len(plain) + 2
    assert "4,sockets=1,dies=1,cores=4,threads=1" in plain
    assert any("hugetlbsize=2048K" in word for word in plain)


def test_flavors_ask_for_encryption_by_name():
    machine = Machine(hugepages="1G")
    plain, snp = (flavor_properties(machine, arm(n)) for n in ("plain", "sev_snp"))
    assert dict(snp.items() - plain.items()) == {"hw:mem_encryption": "true", "hw:mem_encryption_model": "amd-sev-snp"}
    assert plain["hw:mem_page_size"] == "1GB"


def test_cloud_init_reads_the_user_data():
    text = user_data()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config["user"]["name"] == "privbench"
    assert config["runcmd"][-1] == ["touch", "/opt/privbench/ready"]


@pytest.fixture
def written(tmp_path, capsys):
    assert overhead(["plan", "--out", str(tmp_path / "plan"), "--seed", "4", "--memory", "4096"]) == 0
    printed = capsys.readouterr()
    assert sorted(printed.out.split()) == sorted(str(p) for p in (tmp_path / "plan").rglob("*") if p.is_file())
    return tmp_path / "plan", printed.err


def test_a_plan_is_written_whole(written):
    folder, said = written
    described = json.loads((folder / "plan.json").read_text())
    rows = [line.split(",") for line in (folder / "schedule.csv").read_text().splitlines()]
    assert rows[0] == ["number", "block", "arm", "boot", "record"]
    assert [r[4] for r in rows[1:]] == [b["record"] for b in described["schedule"]]
    assert len(rows) == 1 + 6 * len(ARMS)
    assert (described["seed"], described["machine"]["memory"]) == (4, 4096)
    for name in NAMES:
        assert f"{name}.xml" in said
        assert f"`{name}`" in (folder / "README.md").read_text()
    for script in folder.rglob("*.sh"):
        assert os.access(script, os.X_OK)
        subprocess.run(["sh", "-n", str(script)], check=True)
    assert "$" not in (folder / "README.md").read_text()
    words = shlex.split((folder / "qemu/sev_snp.sh").read_text().replace("\\\n", " "), comments=True)
    assert words[1:] == command(Machine(memory=4096), arm("sev_snp"))


def test_every_arm_is_recorded_on_the_disk_with_leave_to_fetch_certificates(written):
    folder, _ = written
    said, script = (folder / "README.md").read_text(), (folder / "boots.sh").read_text()
    for text in (said, script):
        (line,) = [line for line in text.splitlines() if "overhead record" in line and "sudo" in line]
        settings = line.split("--out /opt/privbench/record.json ")[1].split(" || ")[0].split()
        what = checked(compose([s.replace('"$arm"', "x") for s in settings if not s.startswith("scratch=")]))
        assert what.network
        assert what.workloads["attestation"] == Attestation(network=True)
        assert "scratch=/opt/privbench" in settings, "a temporary folder may be no disk"
        before = text[: text.index(line)]
        assert "sudo modprobe msr" in before
    assert "kdsintf.amd.com" in said


STUB = """\
#!/bin/sh
[ -e up ] || [ "$*" = "--quiet create libvirt/plain.xml" ] || exit 1
case "$(basename "$0") $*" in
  "virsh "*create*) touch up ;;
  "virsh destroy"*) rm up; echo destroyed >> log ;;
  *"overhead record"*) exit "$STATUS" ;;
  *"cat /opt"*) [ -z "$LOST" ] && echo '{}' ;;
  *modprobe*) exit 1 ;;
  *poweroff*) rm up; echo off >> log ;;
esac
"""
"""ssh and virsh of a host with one guest, which is up while the file is there."""


@pytest.mark.parametrize(
    ("status", "lost", "ended", "left"),
    [
        (0, "", 0, ["off"]),
        (1, "", 0, ["off"]),
        (1, "yes", 1, ["destroyed"]),
        (2, "", 1, ["destroyed"]),
        (255, "", 1, ["destroyed"]),
    ],
)
def test_a_record_with_a_fault_is_fetched_and_no_guest_is_left_behind(written, tmp_path, status, lost, ended, left):
    folder, _ = written
    script = folder / "boots.sh"
    for real in ("/proc/sys/vm", "/var/lib/privbench"):
        script.write_text(script.read_text().replace(real, str(tmp_path)))
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in ("ssh", "virsh"):
        (stubs / name).write_text(STUB)
    for name in ("qemu-img", "sha256sum", "sleep", "sync"):
        (stubs / name).write_text("#!/bin/sh\n")
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    (folder / "schedule.csv").write_text("number,block,arm,boot,record\n1,1,plain,1,records/001-plain.json\n")
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "STATUS": str(status), "LOST": lost}
    done = subprocess.run([script, "libvirt"], env=environment, timeout=30, capture_output=True, text=True, cwd=folder)
    assert done.returncode == ended, done.stderr
    assert (folder / "records/001-plain.json").exists() == (not ended)
    assert (folder / "log").read_text().split() == left
    assert not (folder / "up").exists()


def test_a_plan_is_not_written_over(written, capsys):
    folder, _ = written
    assert overhead(["plan", "--out", str(folder)]) == 2
    assert "a folder without a plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cpus", "3-1"], "cpus=3-1"),
        (["--cpus", "1,1"], "cpus=1,1"),
        (["--cpus", "1-"], "cpus=1-"),
        (["--memory", "3000", "--hugepages", "1G"], "memory=3000"),
        (["--hugepages", "4M"], "hugepages=4M"),
        (["--arms", "plain,sev"], "with again"),
        (["--arms", "plain,again"], "arm to compare"),
        (["--arms", "plain,again,tdx"], "arms=tdx"),
        (["--boots", "7"], "boots=7"),
        (["--seed", "-1"], "seed=-1"),
        (["--repeats", "3"], "repeats=3"),
        (["--image", "disk.qcow2"], "image=disk.qcow2"),
        (["--image", "/a,b"], "image=/a,b"),
        (["--cpu", "host,-smep"], "cpu=host,-smep"),
        (["--append", 'root="x"'], "append="),
        (["--cbitpos", "5"], "cbitpos=5"),
        (["--reduced-phys-bits", "0"], "reduced_phys_bits=0"),
        (["--port", "22"], "port=22"),
        (["--node", "-1"], "node=-1"),
    ],
)
def test_bad_input_names_the_field(given, said, tmp_path, capsys):
    assert overhead(["plan", "--out", str(tmp_path / "plan"), *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


def test_processors_are_numbers_and_ranges():
    assert processors("8-10,0,12") == (8, 9, 10, 0, 12)
    assert [a.name for a in choose(" sev_snp,again, plain")] == ["plain", "again", "sev_snp"]


def schema_stub(folder: Path, known: str) -> Path:
    """A schema that knows ``domain`` with a name and whatever ``known`` allows of launch security."""
    folder.mkdir()
    (folder / "domain.rng").write_text(
        '<grammar xmlns="http://relaxng.org/ns/structure/1.0"><start><element name="domain"><element name="name">'
        f'<text/></element><optional><element name="launchSecurity"><attribute name="type"><value>{known}</value>'
        "</attribute></element></optional></element></start></grammar>"
    )
    (folder / "domaincommon.rng").write_text(f"<value>{known}</value>")
    return folder


def outcomes(tmp_path: Path, *texts: str) -> list[str]:
    paths = []
    for n, text in enumerate(texts):
        paths.append(tmp_path / f"{n}.xml")
        paths[-1].write_text(text)
    return [one.outcome for one in validate(paths)]


GOOD = "<domain><name>x</name></domain>"
SNP = "<domain><name>x</name><launchSecurity type='sev-snp'/></domain>"


@pytest.mark.skipif(shutil.which("xmllint") is None, reason="xmllint isn't on this machine")
def test_domains_are_held_against_the_schema(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBVIRT_SCHEMAS", str(schema_stub(tmp_path / "new", "sev-snp")))
    assert outcomes(tmp_path, GOOD, SNP, "<domain/>") == ["valid", "valid", "invalid"]
    monkeypatch.setenv("LIBVIRT_SCHEMAS", str(schema_stub(tmp_path / "old", "sev")))
    assert outcomes(tmp_path, GOOD, SNP) == ["valid", "not checked"]
    assert overhead(["plan", "--out", str(tmp_path / "plan")]) == 1  # real domains have more than a name


def test_without_schemas_nothing_is_called_valid(tmp_path, monkeypatch):
    monkeypatch.delenv("LIBVIRT_SCHEMAS", raising=False)
    monkeypatch.setattr("privbench.benchmarks.overhead.plan_schema.USUAL", (tmp_path / "none",))
    assert outcomes(tmp_path, GOOD) == ["not checked"]
    monkeypatch.setenv("LIBVIRT_SCHEMAS", str(tmp_path))
    assert overhead(["plan", "--out", str(tmp_path / "plan")]) == 2
    assert not (tmp_path / "plan").exists()


@pytest.mark.skipif(shutil.which("xmllint") is None, reason="xmllint isn't on this machine")
@pytest.mark.parametrize("pages", ["none", "2M", "1G"])
@pytest.mark.parametrize("cpu", ["host", "EPYC-v4"])
def test_libvirt_takes_every_domain(pages, cpu, tmp_path):
    if schemas() is None:
        pytest.skip("libvirt's schemas aren't on this machine")
    paths = []
    for one in ARMS:
        paths.append(tmp_path / f"{one.name}.xml")
        paths[-1].write_text(domain(Machine(hugepages=pages, cpu=cpu), one))
    assert not [found for found in validate(paths) if found.outcome == "invalid"]
    assert validate(paths[:1])[0].outcome == "valid"


def test_the_document_shows_what_its_command_writes(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "overhead-compare.md").read_text(encoding="utf-8")
    asked = re.search(r"^privbench (overhead plan .*)$", page, re.MULTILINE)
    shown = dict(re.findall(r"^```(csv|xml)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    assert asked
    assert overhead(asked[1].split()[1:]) == 0
    assert Path("plan/schedule.csv").read_text().startswith(shown["csv"])
    plain, snp = (Path(f"plan/libvirt/{name}.xml").read_text().splitlines() for name in ("plain", "sev_snp"))
    assert [line for line in snp if line not in plain and "<name>" not in line] == shown["xml"].splitlines()
    assert f"of the {len(snp)} lines" in page
