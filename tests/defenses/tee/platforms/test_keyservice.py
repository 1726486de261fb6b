"""Certificates from the cache and from AMD's key service; no test leaves this machine."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee.certificates import LARGEST, Certificate
from privbench.defenses.tee.platforms import Unavailable, keyservice
from privbench.defenses.tee.platforms.keyservice import Answer, Store
from privbench.defenses.tee.report import Malformed, parse

FIXED = "https://kdsintf.amd.com"


def pem(*ders: bytes) -> bytes:
    """What the service gives for a chain."""
    return b"".join(certs.load(der)[0].x509.public_bytes(Encoding.PEM) for der in ders)


def above(made: Any) -> tuple[Certificate, Certificate]:
    return certs.load(made.ask)[0], certs.load(made.root)[0]


def test_the_url_of_a_real_leaf(genoa: Any):
    url, unserved = keyservice.leaf_url("Genoa", parse(genoa.outblob))
    assert url == (
        f"{FIXED}/vcek/v1/Genoa/7b1584c94c7a426164b2db1198903db0685b7f5fdabdf42d4da981b0de521d1d5d5d8a91932bbbc1b13f5d5c"
        "ae45a7304657d9a9d01c50c435670f0562a5970b?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"
    )
    assert not unserved


def test_the_urls_of_the_other_lines(forge: Any):
    url, _ = keyservice.leaf_url("Turin", parse(forge(product="Turin").report()))
    assert url == f"{FIXED}/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=213"
    url, _ = keyservice.leaf_url("Milan", parse(forge().report()))
    assert url.endswith("3f40?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=213")


def test_what_the_service_cant_be_asked(forge: Any):
    assert "cloud provider" in keyservice.leaf_url("Milan", parse(forge(kind="VLEK").report()))[1]
    masked = parse(forge(fields={0x1A0: bytes(64)}).report())
    assert keyservice.leaf_url("Milan", masked) == ("", "CHIP_ID is masked, so the key service can't be asked")


@pytest.mark.parametrize(("kind", "name"), [("VCEK", "vcek"), ("VLEK", "vlek")])
def test_a_chain_is_fetched_once(service: Any, guest: Any, tmp_path: Path, kind: str, name: str):
    made = guest(kind=kind)
    service.put(f"{FIXED}/{name}/v1/Milan/cert_chain", pem(made.ask, made.root))
    assert Store(tmp_path, True).authorities("Milan", kind) == above(made)
    assert (tmp_path / "Milan" / f"{name}-chain.pem").read_bytes() == pem(made.ask, made.root)
    assert Store(tmp_path, False).authorities("Milan", kind) == above(made)
    assert Store(tmp_path, True).authorities("Milan", kind) == above(made)
    assert len(service.asked) == 1
    assert [p.name for p in (tmp_path / "Milan").iterdir()] == [f"{name}-chain.pem"]


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_a_leaf_is_fetched_once(service: Any, guest: Any, tmp_path: Path, product: str):
    made = guest(product=product)
    report = parse(made.reply(bytes(64), 0)[0])
    url, _ = keyservice.leaf_url(product, report)
    service.put(url, made.leaf)
    for network in (True, False, True):
        assert Store(tmp_path, network).leaf(product, report, above(made)).der == made.leaf
    assert service.asked == [url]
    path = Store(tmp_path, False).path(product, report)
    assert path.read_bytes() == made.leaf
    hwid = made.chip()[: 8 if product == "Turin" else 64].hex()
    assert path == tmp_path / product / f"vcek-{hwid}-{made.tcb.hex()}.der"
    assert path.stat().st_mode & 0o777 == 0o644


def test_without_network_the_file_and_the_url_are_named(service: Any, guest: Any, tmp_path: Path):
    made = guest()
    report = parse(made.reply(bytes(64), 0)[0])
    store = Store(tmp_path, False)
    url, _ = keyservice.leaf_url("Milan", report)
    with pytest.raises(Unavailable) as caught:
        store.leaf("Milan", report, above(made))
    assert str(caught.value) == (
        f"the VCEK is missing: {store.path('Milan', report)}: No such file or directory; put it there in DER or PEM, "
        f"or let network=true fetch it from {url}"
    )
    with pytest.raises(
        Unavailable, match=r"the chain .* of a VCEK on Milan is missing: .*vcek-chain.pem: No such file"
    ):
        store.authorities("Milan", "VCEK")
    assert not service.asked


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(
    ("settings", "named"), [({"kind": "VLEK"}, "no VLEKs"), ({"fields": {0x1A0: bytes(64)}}, "CHIP_ID is masked")]
)
def test_what_isnt_served_can_still_be_put_there(
    service: Any, guest: Any, tmp_path: Path, network: bool, settings: dict[str, Any], named: str
):
    made = guest(**settings)
    report = parse(made.reply(bytes(64), 0)[0])
    store = Store(tmp_path, network)
    with pytest.raises(Unavailable, match=f"put it there in DER or PEM: .*{named}"):
        store.leaf("Milan", report, above(made))
    store.path("Milan", report).parent.mkdir()
    store.path("Milan", report).write_bytes(pem(made.leaf))
    assert store.leaf("Milan", report, above(made)).der == made.leaf
    assert not service.asked


def spoiled(der: bytes, at: int) -> bytes:
    return der[:at] + bytes((der[at] ^ 1,)) + der[at + 1 :]


@pytest.mark.parametrize("which", ["empty", "cut", "junk", "its signature", "another key", "another name", "too large"])
def test_a_corrupt_leaf_is_named_or_fetched_anew(service: Any, guest: Any, forge: Any, tmp_path: Path, which: str):
    made = guest()
    report = parse(made.reply(bytes(64), 0)[0])
    found = {
        "empty": b"",
        "cut": made.leaf[:-1],
        "junk": b"junk",
        "its signature": spoiled(made.leaf, len(made.leaf) - 1),
        "another key": made.ask,
        "another name": forge(leaf_name="SEV-VLEK").chain()[0],
        "too large": made.leaf + bytes(LARGEST),
    }[which]
    path = Store(tmp_path, False).path("Milan", report)
    path.parent.mkdir()
    path.write_bytes(found)
    with pytest.raises(Unavailable, match=r"the VCEK is missing: .*vcek-.*der: "):
        Store(tmp_path, False).leaf("Milan", report, above(made))
    service.put(keyservice.leaf_url("Milan", report)[0], made.leaf)
    assert Store(tmp_path, True).leaf("Milan", report, above(made)).der == made.leaf
    assert path.read_bytes() == made.leaf
    # What the service gives is held against the same, and not kept.
    path.unlink()
    service.put(keyservice.leaf_url("Milan", report)[0], found)
    with pytest.raises(Unavailable, match=r"Milan/.* gave something else: "):
        Store(tmp_path, True).leaf("Milan", report, above(made))
    assert not any(path.parent.iterdir())


def test_a_leaf_that_did_not_sign_isnt_taken(service: Any, guest: Any, tmp_path: Path):
    made = guest(fields={0x2A0: b"\1" * 48})
    report = parse(made.reply(bytes(64), 0)[0])
    service.put(keyservice.leaf_url("Milan", report)[0], made.leaf)
    with pytest.raises(Unavailable, match="gave something else: not the VCEK that signed this report"):
        Store(tmp_path, True).leaf("Milan", report, above(made))


def test_a_corrupt_chain_is_named_or_fetched_anew(service: Any, guest: Any, tmp_path: Path):
    made = guest()
    (tmp_path / "Milan").mkdir()
    path = tmp_path / "Milan" / "vcek-chain.pem"
    for found in (
        b"",
        pem(made.ask),
        pem(made.root, made.root, made.ask),
        pem(spoiled(made.ask, len(made.ask) - 1), made.root),
    ):
        path.write_bytes(found)
        with pytest.raises(Unavailable, match=r"vcek-chain.pem: .*put it there in PEM, or let network=true"):
            Store(tmp_path, False).authorities("Milan", "VCEK")
    service.put(f"{FIXED}/vcek/v1/Milan/cert_chain", pem(made.ask, made.root))
    assert Store(tmp_path, True).authorities("Milan", "VCEK") == above(made)
    assert Store(tmp_path, False).authorities("Milan", "VCEK") == above(made)


def test_a_file_that_cant_be_read(service: Any, guest: Any, tmp_path: Path):
    made = guest()
    (tmp_path / "Milan" / "vcek-chain.pem").mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"vcek-chain.pem: Is a directory"):
        Store(tmp_path, False).authorities("Milan", "VCEK")
    # Nor can it be written; the chain is had all the same.
    service.put(f"{FIXED}/vcek/v1/Milan/cert_chain", pem(made.ask, made.root))
    assert Store(tmp_path, True).authorities("Milan", "VCEK") == above(made)
    assert [p.name for p in (tmp_path / "Milan").iterdir()] == ["vcek-chain.pem"]


def test_two_in_any_order_are_a_pair(guest: Any):
    made = guest()
    middle, root = above(made)
    assert keyservice.pair([root, middle]) == (middle, root)
    for found in ([], [root], [root, root], [middle, middle], [middle, root, root]):
        with pytest.raises(Malformed):
            keyservice.pair(found)


def busy(retry_after: str | None) -> Answer:
    return Answer(429, retry_after=retry_after)


def test_patience(service: Any):
    service.pages["u"] = [busy("7"), busy(None), busy("soon"), Answer(200, b"body")]
    assert keyservice.get("u") == b"body"
    assert service.slept == [7, keyservice.PAUSE, keyservice.PAUSE]
    service.pages["u"] = [busy(format_datetime(datetime.now(UTC) + timedelta(seconds=30))), Answer(200, b"body")]
    assert keyservice.get("u") == b"body"
    assert 25 < service.slept[-1] <= 30
    service.pages["u"] = [busy("Mon, 01 Jan 2001 00:00:00 GMT"), Answer(200, b"body")]
    assert keyservice.get("u") == b"body"
    assert service.slept[-1] == 0


def test_patience_ends(service: Any):
    service.pages["u"] = [busy("1")]
    with pytest.raises(Unavailable, match=f"u: HTTP status 429, {keyservice.TRIES} times"):
        keyservice.get("u")
    assert service.slept == [1] * (keyservice.TRIES - 1)
    for long in ("61", "9" * 400):
        service.pages["u"] = [busy(long)]
        with pytest.raises(Unavailable, match=r"u: HTTP status 429, asks to wait .* \(Retry-After\)"):
            keyservice.get("u")
    assert len(service.asked) == keyservice.TRIES + 2


def test_other_answers_are_final(monkeypatch: pytest.MonkeyPatch, service: Any):
    for status in (404, 500, 302):
        service.pages["u"] = [Answer(status)]
        with pytest.raises(Unavailable, match=f"u: HTTP status {status}"):
            keyservice.get("u")
    assert len(service.asked) == 3

    def down(_: str) -> Answer:
        raise OSError("no route")

    monkeypatch.setattr(keyservice, "fetch", down)
    with pytest.raises(Unavailable, match="u: no route"):
        keyservice.get("u")


def test_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from privbench.benchmarks.tasks.sources import files

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keyservice.cache() == tmp_path / "privbench" / "amd" == files.cache() / "amd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert keyservice.cache() == files.cache() / "amd"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        busy = self.path == "/busy"
        self.send_response(429 if busy else 200)
        if busy:
            self.send_header("Retry-After", "3")
        self.end_headers()
        self.wfile.write(bytes(2 * LARGEST if self.path == "/large" else 3))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_request(loopback: str):
    assert keyservice.fetch(f"{loopback}/some") == Answer(200, bytes(3))
    assert keyservice.fetch(f"{loopback}/busy") == Answer(429, b"", "3")
    assert len(keyservice.fetch(f"{loopback}/large").body) == LARGEST + 1
