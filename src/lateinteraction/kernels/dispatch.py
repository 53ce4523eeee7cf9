"""Which form computes: by device and precision, by a caller's or a person's word; never silently by what is missing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import torch

if TYPE_CHECKING:
    from lateinteraction.kernels.form import Form

FormName = Literal["eager", "cpu", "gpu"]
VARIABLE = "LATEINTERACTION_KERNELS"
"""The environment variable that forces a form for a whole process."""

_DEVICES: dict[FormName, tuple[str, ...]] = {"cpu": ("cpu",), "gpu": ("cuda",)}
_forced: ContextVar[FormName | None] = ContextVar("lateinteraction_kernels", default=None)


class MissingForm(RuntimeError):
    """The form that this device, precision or person asks for cannot compute here."""


class Choice(NamedTuple):
    """A form and why it was chosen."""

    form: FormName
    reason: str


def form_for(device: str, *dtypes: torch.dtype) -> Choice:
    """The form that computes on this kind of device ("cpu", "cuda", "mps", …) with inputs of these dtypes.

    Warns, once, where the host has to do without numba and nobody asked for that.

    Raises:
        MissingForm: a forced form does not know the device; Triton is not installed; the variable names no form.
    """
    forced = _forced.get()
    if forced is None and (named := os.environ.get(VARIABLE)):
        forced = _known(named)
    if forced is not None:
        return _forced_choice(forced, device)
    if device not in ("cpu", "cuda"):
        return Choice("eager", f"torch operations: there is no other form for {device}")
    if torch.float64 in dtypes:
        return Choice("eager", "torch operations: float64 has no other form")
    if device == "cuda":
        if not _installed("triton"):
            raise MissingForm('Triton is not installed: pip install "lateinteraction[gpu]", or force the eager form')
        return Choice("gpu", "Triton, compiled for this device")
    if not _installed("numba"):
        _warn_of_slowness()
        return Choice("eager", "torch operations, several times slower: numba is not installed")
    return Choice("cpu", "numba, compiled for this processor")


def load(form: FormName) -> Form:
    """The functions of a form. The first time imports what it is made of."""
    return cast("Form", importlib.import_module(f"lateinteraction.kernels.{form}"))


@contextmanager
def use(form: FormName) -> Iterator[None]:
    """Every call inside, in this thread or task, is computed by this form; `LATEINTERACTION_KERNELS` is overruled.

    Raises:
        MissingForm: there is no such form. A call on a device that it does not know raises the same; one with a
            precision that it cannot compute, TypeError.
    """
    token = _forced.set(_known(form))
    try:
        yield
    finally:
        _forced.reset(token)


@functools.cache
def _installed(package: str) -> bool:
    """Whether a package could be imported; looked up once, for it takes longer than scoring a few documents."""
    return importlib.util.find_spec(package) is not None


@functools.cache
def _warn_of_slowness() -> None:
    warnings.warn(
        "numba is not installed: on the CPU, scores are computed by torch operations, several times slower. "
        f"Install numba; or set {VARIABLE}=eager, and nobody will mention it again.",
        RuntimeWarning,
        stacklevel=3,
    )


def _known(name: str) -> FormName:
    if name not in get_args(FormName):
        raise MissingForm(f"there is no form {name!r}; there are {', '.join(get_args(FormName))}")
    return cast("FormName", name)


def _forced_choice(form: FormName, device: str) -> Choice:
    interpreted = form == "gpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device not in _DEVICES.get(form, (device,)) and not interpreted:
        raise MissingForm(f"the form {form!r} is forced, and does not compute on {device}")
    return Choice(form, f"forced, by `use` or by {VARIABLE}")
