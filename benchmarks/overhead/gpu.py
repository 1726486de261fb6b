"""Graphics processors and the state of their confidential computing, from NVML (the package ``nvidia-ml-py``)."""

import importlib
from typing import Any

CPU_CAPABILITIES = {0: "none", 1: "AMD SEV", 2: "Intel TDX", 3: "AMD SEV-SNP", 4: "AMD SNP with vTOM"}
"""``NVML_CC_SYSTEM_CPU_CAPS_*``; the tables below are of the same header, nvml.h."""

GPU_CAPABILITIES = {0: "not capable", 1: "capable"}
FEATURES = {0: "disabled", 1: "enabled"}
ENVIRONMENTS = {0: "unavailable", 1: "simulated", 2: "production"}
DEV_TOOLS = {0: "off", 1: "on"}


def found() -> list[dict[str, Any]] | None:
    """One entry a processor, as the schema's ``gpus``; ``None`` where NVML can't be asked.

    What this says is the driver's word: it proves nothing, as long as no attestation of the processor is verified.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no library, no driver: each has an error of its own
        return None
    try:
        return [_device(nvml, i) for i in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capabilities = _ask(nvml, "nvmlSystemGetConfComputeCapabilities")
    state = _ask(nvml, "nvmlSystemGetConfComputeState")
    ready = _ask(nvml, "nvmlSystemGetConfComputeGpusReadyState")
    sizes = _ask(nvml, "nvmlDeviceGetConfComputeMemSizeInfo", handle)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return {
        "name": _plain(nvml.nvmlDeviceGetName(handle)),
        "driver": _plain(_ask(nvml, "nvmlSystemGetDriverVersion")),
        "memory_bytes": None if memory is None else int(memory.total),
        "cpu_capability": _named(capabilities, "cpuCaps", CPU_CAPABILITIES),
        "gpu_capability": _named(capabilities, "gpusCaps", GPU_CAPABILITIES),
        "feature": _named(state, "ccFeature", FEATURES),
        "environment": _named(state, "environment", ENVIRONMENTS),
        "dev_tools": _named(state, "devToolsMode", DEV_TOOLS),
        "ready": None if ready is None else bool(ready),
        "protected_bytes": None if sizes is None else int(sizes.protectedMemSizeKib) * 1024,
    }


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """``None`` where this driver or this processor doesn't know the question."""
    try:
        return getattr(nvml, name)(*arguments)
    except (AttributeError, nvml.NVMLError):
        return None


def _named(answer: Any, field: str, names: dict[int, str]) -> str | None:
    value = None if answer is None else int(getattr(answer, field))
    return None if value is None else names.get(value, f"unknown ({value})")


def _plain(text: Any) -> Any:
    return text.decode() if isinstance(text, bytes) else text
