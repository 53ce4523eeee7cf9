"""What computes here, and why: devices, threads, the form of the kernels and what it is compiled for."""

from __future__ import annotations

import torch

from lateinteraction.adapters.neural.transfer import resolve_device
from lateinteraction.kernels import MissingForm, form_for


def describe_devices(device: str = "auto") -> dict[str, object]:
    """Devices of this machine, the one that `device` chooses, torch's threads, and the kernels for it."""
    chosen = resolve_device(device)
    return {
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "device": str(chosen),
        "threads": torch.get_num_threads(),
        "kernels": _describe_kernels(chosen.type),
    }


def _describe_kernels(device: str) -> dict[str, str]:
    try:
        form, reason = form_for(device)
    except MissingForm as error:
        return {"form": "none", "reason": str(error)}
    return {"form": form, "reason": reason} | ({"processor": _describe_processor()} if form == "cpu" else {})


def _describe_processor() -> str:
    """What the CPU form compiles for."""
    from lateinteraction.kernels.cpu.processor import processor

    found = processor()
    products = "products of bytes by VNNI" if found.byte_dots else "products of bytes by 16-bit multiplication"
    return f"{found.name}: {32 * found.lanes}-bit vectors, {products}"
