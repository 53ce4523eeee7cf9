"""What computes here, and why: devices, threads and the kernels' chosen form."""

from __future__ import annotations

import torch

from lateinteraction.adapters.neural.transfer import resolve_device
from lateinteraction.kernels import form_for


def describe_devices(device: str = "auto") -> dict[str, object]:
    """Devices of this machine, the one that `device` chooses, torch's threads, and the kernels for it."""
    chosen = resolve_device(device)
    form, reason = form_for(chosen.type)
    return {
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "device": str(chosen),
        "threads": torch.get_num_threads(),
        "kernels": {"maxsim": form, "reason": reason},
    }
