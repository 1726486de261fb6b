import io

from rich.console import Console

from privbench.benchmarks.results.report import report


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sweep_s_report_lies_beside_its_index_and_repeats_byte_for_byte(quickstart):
    folder = quickstart()
    made = report(folder)
    assert made.status == 0
    assert {p.name for p in made.files} >= {"table.txt", "table.csv", "table.tex", "privacy_utility.pdf", "leakage.png"}
    assert all(p.is_file() and p.is_relative_to(folder) for p in made.files)
    first = files(folder)
    report(folder)
    assert files(folder) == first


def test_refused_arms_are_listed_and_the_others_shown(fake):
    fake.run("none")
    bad = fake.run("dp_local", status="failed", error="out of\nmemory")
    out = io.StringIO()
    made = report(fake.root, Console(file=out, width=200))
    assert made.status == 1
    assert [r[0] for r in made.table.rows] == ["none"]
    line = f"REFUSED dp_local: 1 of 1 runs failed: out of memory ({bad.name})"
    assert line in out.getvalue()
    assert line in (fake.root / "report" / "table.txt").read_text()
    assert f"% {line}\n" in (fake.root / "report" / "table.tex").read_text()
    assert str(fake.root / "report") in out.getvalue()


def test_only_refused_arms_still_make_a_report(fake):
    fake.run("dp_local", status="running")
    made = report(fake.root)
    assert made.status == 1
    assert made.table.rows == ()
    assert not [f for f in made.files if f.suffix == ".png"]


def test_each_setup_has_its_own_figures(fake):
    fake.run(task="mnist5k")
    fake.run(task="digits")
    names = {f.name for f in report(fake.root).files}
    assert {"accuracy_over_rounds-mnist5k.png", "accuracy_over_rounds-digits.png"} <= names


def test_a_figure_that_is_no_longer_there_to_show_is_removed(fake):
    fake.run("none")
    folder = report(fake.root).folder / "figures"
    (folder / "asr_over_rounds.png").write_bytes(b"stale")
    (folder / "mine.png").write_bytes(b"kept")
    report(fake.root)
    assert not (folder / "asr_over_rounds.png").exists()
    assert (folder / "mine.png").exists()


def test_mixed_revisions_are_labelled_when_asked_for(fake):
    fake.run("none")
    fake.run("krum", revision={"commit": "b" * 40, "dirty": True})
    assert report(fake.root).status == 1
    made = report(fake.root, mixed_revisions=True)
    assert made.status == 0
    assert any(n.startswith("MIXED REVISIONS: aaaaaaaaaa, bbbbbbbbbb+") for n in made.table.notes)
