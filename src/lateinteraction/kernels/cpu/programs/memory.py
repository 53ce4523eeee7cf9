"""Addresses as pointers of a type, which programs index as they would an array: no bounds, nothing from the end."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from lateinteraction.kernels.cpu.programs import vector as v


def _pointer_to(item: types.Type) -> Any:
    @intrinsic
    def pointer(_context: Any, address: Any) -> Any:
        def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(item)(types.int64), convert

    return pointer


float32s = _pointer_to(types.float32)
int64s = _pointer_to(types.int64)
int32s = _pointer_to(types.int32)
int16s = _pointer_to(types.int16)
int8s = _pointer_to(types.int8)
uint8s = _pointer_to(types.uint8)
uint16s = _pointer_to(types.uint16)
uint32s = _pointer_to(types.uint32)


def numbers(count: int) -> Any:
    """An intrinsic (address): the `count` whole numbers that a driver left there (`operands.given`), as a tuple."""

    @intrinsic
    def read(_context: Any, address: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], v.POINTER)
            values = [v.load(builder, v.LONG, pointer, 8 * number) for number in range(count)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(types.int64, count)(address), lower

    return read
