"""Certificates that the host didn't give: from a local cache, or from AMD's key distribution service (AMD 57230, 4).

The service answers 429 to those who ask often, so everything is kept by product, hardware id and TCB version, and
nothing is asked of it unless the network was allowed. Neither is trusted: what doesn't fit the report is thrown out
here so that it can be fetched anew, and the verifier decides.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from time import sleep
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.certificates import LARGEST, Certificate
from privbench.defenses.tee.platforms.platform import Unavailable
from privbench.defenses.tee.product import tcb
from privbench.defenses.tee.report import Malformed, Report

SERVICE = "https://kdsintf.amd.com"
PRODUCTS = ("Milan", "Genoa", "Turin")
"""What the service calls the lines of processors; Bergamo and Siena are Genoa."""
TIMEOUT = 30.0
"""Seconds to wait for the service's next bytes."""
TRIES = 4
PAUSE = 5.0
"""Seconds to wait after a 429 that doesn't say how long."""
LONGEST = 60.0
"""Seconds: a service that asks for more patience than this is given up."""

_PARAMETERS = {"fmc": "fmcSPL", "boot_loader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}

Pair = tuple[Certificate, Certificate]
Fit = Callable[[bytes], list[Certificate]]


@dataclass(frozen=True)
class Answer:
    """What the service said: an HTTP status, the body of a 200, the header ``Retry-After``."""

    status: int
    body: bytes = b""
    retry_after: str | None = None


@dataclass(frozen=True)
class Store:
    """Certificates under ``folder``, one folder a product; fetched into it where ``network`` allows.

    Every method raises :class:`Unavailable` for what can't be had, which names the file and the reason.
    """

    folder: Path
    network: bool

    def authorities(self, product: str, kind: str) -> Pair:
        """The ASK (ASVK for a VLEK) and the ARK, signed by each other as they have to be."""
        url = f"{SERVICE}/{kind.lower()}/v1/{product}/cert_chain"
        path = self.folder / product / f"{kind.lower()}-chain.pem"
        middle, root = self._obtain(f"the chain (two certificates) of a {kind} on {product}", path, _pair, url, "")
        return middle, root

    def leaf(self, product: str, report: Report, above: Pair) -> Certificate:
        """The VCEK or VLEK whose key signed ``report``."""

        def fit(raw: bytes) -> list[Certificate]:
            found = [c for c in certs.load(raw) if chains.LEAVES.get(c.name) == report.signing_key]
            if len(found) != 1 or not chains.signs(found[0], report):
                raise Malformed(f"not the {report.signing_key} that signed this report")
            if fault := chains.signatures(chains.Chain(found[0], *above)):
                raise Malformed(fault)
            return found

        url, unserved = leaf_url(product, report)
        return self._obtain(f"the {report.signing_key}", self.path(product, report), fit, url, unserved)[0]

    def path(self, product: str, report: Report) -> Path:
        """Where the leaf for ``report`` is kept: ``Milan/vcek-<hardware id>-<REPORTED_TCB>.der``."""
        whose = "" if report.signing_key == "VLEK" else f"-{_hwid(product, report)}"
        return self.folder / product / f"{str(report.signing_key).lower()}{whose}-{report.reported_tcb.hex()}.der"

    def _obtain(self, what: str, path: Path, fit: Fit, url: str, unserved: str) -> list[Certificate]:
        try:
            with path.open("rb") as file:
                return fit(file.read(LARGEST + 1))
        except OSError as error:
            reason = error.strerror or str(error)
        except Malformed as error:
            reason = str(error)
        missing = (
            f"{what} is missing: {path}: {reason}; put it there in {'PEM' if path.suffix == '.pem' else 'DER or PEM'}"
        )
        if not url:
            raise Unavailable(f"{missing}: {unserved}")
        if not self.network:
            raise Unavailable(f"{missing}, or let network=true fetch it from {url}")
        raw = get(url)
        try:
            found = fit(raw)
        except Malformed as error:
            raise Unavailable(f"{what} is missing: {url} gave something else: {error}") from None
        # A cache that can't be written takes nothing away from the evidence.
        with contextlib.suppress(OSError):
            _keep(path, raw)
        return found


def cache() -> Path:
    """``privbench/amd`` in the user's cache.

    It is where ``benchmarks.tasks.sources`` keeps its files, too; its helper isn't called because that package needs
    torch, which a guest that only attests doesn't.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "privbench" / "amd"


def leaf_url(product: str, report: Report) -> tuple[str, str]:
    """Where the service has the leaf for ``report``, or an empty string and why it hasn't."""
    if report.signing_key != "VCEK":
        return "", "the key service has no VLEKs, the cloud provider hands them out"
    if not any(report.chip_id):
        return "", "CHIP_ID is masked, so the key service can't be asked"
    levels = tcb(report.reported_tcb, product)
    query = "&".join(f"{parameter}={levels[n]:02d}" for n, parameter in _PARAMETERS.items() if n in levels)
    return f"{SERVICE}/vcek/v1/{product}/{_hwid(product, report)}?{query}", ""


def get(url: str) -> bytes:
    """What the service has at ``url``.

    Raises:
        Unavailable: it didn't answer, or not with this.
    """
    for n in range(TRIES):
        try:
            answer = fetch(url)
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(f"{url}: {error}") from None
        if answer.status == 200:
            return answer.body
        if answer.status != 429:
            raise Unavailable(f"{url}: HTTP status {answer.status}")
        seconds = _patience(answer.retry_after)
        if seconds > LONGEST:
            raise Unavailable(f"{url}: HTTP status 429, asks to wait {seconds:.0f} s (Retry-After)")
        if n + 1 < TRIES:
            sleep(seconds)
    raise Unavailable(f"{url}: HTTP status 429, {TRIES} times")


def fetch(url: str) -> Answer:
    """One request, without trying again. Reads no more than 1 MiB and a byte."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "privbench"}), timeout=TIMEOUT) as response:
            return Answer(response.status, response.read(LARGEST + 1))
    except HTTPError as error:
        with error:
            return Answer(error.code, retry_after=error.headers.get("Retry-After"))


def pair(found: list[Certificate]) -> Pair:
    """The two of ``found`` as issuer of leaves and root.

    Raises:
        Malformed: they aren't two, or their signatures don't hold.
    """
    own = [c.x509.subject == c.x509.issuer for c in found]
    if sorted(own) != [False, True]:
        raise Malformed(f"{len(own)} certificates, {sum(own)} self-issued: a chain has an ASK or ASVK, and an ARK")
    middle, root = found if own[1] else reversed(found)
    # As a chain of their own: the issuer under the root, the root under itself.
    if fault := chains.signatures(chains.Chain(middle, root, root)):
        raise Malformed(fault)
    return middle, root


def _pair(raw: bytes) -> list[Certificate]:
    return [*pair(certs.load(raw))]


def _hwid(product: str, report: Report) -> str:
    return report.chip_id[: 8 if product == "Turin" else 64].hex()


def _patience(retry_after: str | None) -> float:
    """Seconds that ``Retry-After`` asks for: a number of them, or a date (RFC 9110, 10.2.3)."""
    given = (retry_after or "").strip()
    if given.isdecimal():
        return float(given)
    try:
        until = parsedate_to_datetime(given)
    except ValueError:
        return PAUSE
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _keep(path: Path, raw: bytes) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.chmod(partial, 0o644)  # mkstemp's 0600 would shut other users out of a shared folder
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
