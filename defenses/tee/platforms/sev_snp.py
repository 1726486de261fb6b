"""Evidence from inside an AMD SEV-SNP guest: a report of the processor's, and the certificates to verify it with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from privbench.benchmarks.build import RUNTIME, require
from privbench.defenses.tee import certificates as certs
from privbench.defenses.tee import chain as chains
from privbench.defenses.tee.certificates import Certificate
from privbench.defenses.tee.platforms import configfs, device, keyservice
from privbench.defenses.tee.platforms.keyservice import PRODUCTS, Pair, Store
from privbench.defenses.tee.platforms.platform import Evidence, Unavailable
from privbench.defenses.tee.product import of_cpu, of_name
from privbench.defenses.tee.report import Malformed, Report, parse


@dataclass(frozen=True)
class SEVSNP:
    """The guest that this process runs in.

    Args:
        configfs: folder of configfs-tsm, which is asked first.
        device: the driver's device, asked where configfs-tsm gives no report.
        vmpl: privilege level to ask for, 0 to 3; None is the kernel's default, 0. A guest can't ask for a level that
            is more privileged than its own.
        cache: folder of certificates; None is ``privbench/amd`` in the user's cache.
        network: whether AMD's key service may be asked for certificates that neither host nor cache has.
        product: ``Milan``, ``Genoa`` or ``Turin``, for reports that don't say (version 2) without a leaf certificate.
        attempts: how often to ask configfs-tsm where another writer is in the way.

    Raises:
        ConfigError: a field out of its range.
    """

    configfs: str = field(default="/sys/kernel/config/tsm/report", metadata=RUNTIME)
    device: str = field(default="/dev/sev-guest", metadata=RUNTIME)
    vmpl: int | None = None
    cache: str | None = field(default=None, metadata=RUNTIME)
    network: bool = field(default=False, metadata=RUNTIME)
    product: str | None = field(default=None, metadata=RUNTIME)
    attempts: int = field(default=5, metadata=RUNTIME)

    def __post_init__(self) -> None:
        require(bool(self.configfs), "configfs", self.configfs, "a folder")
        require(bool(self.device), "device", self.device, "a device")
        require(self.vmpl is None or 0 <= self.vmpl <= 3, "vmpl", self.vmpl, "0 to 3")
        require(self.cache != "", "cache", self.cache, "a folder, or null for the user's cache")
        require(self.product in (None, *PRODUCTS), "product", self.product, f"one of {', '.join(PRODUCTS)}")
        require(1 <= self.attempts <= 100, "attempts", self.attempts, "1 to 100")

    @property
    def name(self) -> str:
        return "sev_snp"

    def evidence(self, report_data: bytes) -> Evidence:
        """A report over ``report_data``, 64 bytes, with its leaf, ASK or ASVK, and ARK in DER. Nothing is verified.

        Raises:
            ConfigError: ``report_data`` isn't 64 bytes.
            Unavailable: what was tried for the report, or which certificate is missing, and why.
        """
        require(len(report_data) == 64, "report_data", report_data.hex(), "64 bytes, 128 hexadecimal digits")
        raw, table = self._report(report_data)
        found = self._certificates(parse(raw), table)
        return Evidence(raw, tuple(c.der for c in found))

    def _report(self, report_data: bytes) -> tuple[bytes, bytes | None]:
        ways: dict[str, Callable[[], tuple[bytes, bytes | None]]] = {
            "configfs-tsm": lambda: configfs.report(Path(self.configfs), report_data, self.vmpl, self.attempts),
            self.device: lambda: device.report(Path(self.device), report_data, self.vmpl),
        }
        reasons: list[str] = []
        for name, ask in ways.items():
            try:
                return ask()
            except Unavailable as error:
                reasons.append(f"{name}: {error}")
        raise Unavailable("; ".join(reasons))

    def _certificates(self, report: Report, table: bytes | None) -> list[Certificate]:
        held, said = _host(table)
        found = chains.candidates(held, report)
        whole = [c for c in found if len(c.members) == 3 and chains.signs(c.leaf, report)]
        if whole:
            return next((c for c in whole if chains.signatures(c) is None), whole[0]).members
        try:
            return self._completed(report, held, found[0].leaf if found else None)
        except Unavailable as error:
            raise Unavailable(f"{said}; {error}") from None

    def _completed(self, report: Report, held: list[Certificate], leaf: Certificate | None) -> list[Certificate]:
        kind = report.signing_key
        if kind is None:
            raise Unavailable("the report's SIGNING_KEY names neither a VCEK nor a VLEK")
        product, store = self._product(report, leaf), self._store()
        above = _authorities(held, product, kind) or store.authorities(product, kind)
        if leaf is not None and chains.signs(leaf, report):
            return [leaf, *above]
        try:
            return [store.leaf(product, report, above), *above]
        except Unavailable:
            # Hosts keep an old VCEK after an update. Where there is no better one, the verifier says what is wrong.
            if leaf is None:
                raise
            return [leaf, *above]

    def _product(self, report: Report, leaf: Certificate | None) -> str:
        cpu = of_cpu(report.cpuid_family, report.cpuid_model) if report.version >= 3 else None
        product = next((p for p in (cpu, _stated(leaf), self.product) if p in PRODUCTS), None)
        if product is None:
            raise Unavailable(
                f"neither a certificate nor the report, version {report.version} with CPUID family "
                f"{report.cpuid_family:#x} model {report.cpuid_model:#x}, says which product this is: set product to "
                f"one of {', '.join(PRODUCTS)}"
            )
        return product

    def _store(self) -> Store:
        folder = Path(self.cache).expanduser() if self.cache else keyservice.cache()
        return Store(folder, self.network)


def _host(table: bytes | None) -> tuple[list[Certificate], str]:
    """The certificates in the host's table, and what to say of it where they don't suffice."""
    if table is None:
        return [], "the host gave no certificates"
    try:
        held = certs.load(table)
    except Malformed as error:
        return [], f"the host's certificates can't be read ({error})"
    return held, f"the host gave {', '.join(c.name or 'one without a name' for c in held) or 'no certificates'}"


def _authorities(held: list[Certificate], product: str, kind: str) -> Pair | None:
    """The ASK or ASVK and the ARK of ``product`` among the host's certificates; None where they don't hold."""
    wanted = (f"SEV-VLEK-{product}" if kind == "VLEK" else f"SEV-{product}", f"ARK-{product}")
    try:
        return keyservice.pair([c for c in held if c.name in wanted])
    except Malformed:
        return None


def _stated(leaf: Certificate | None) -> str | None:
    try:
        stated = certs.leaf(leaf).product if leaf else None
    except Malformed:
        return None
    return of_name(stated) if stated else None
