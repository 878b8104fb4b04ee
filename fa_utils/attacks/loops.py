"""Loops over the entries of dense float32 tensors on the CPU, each in one pass; `fa_utils.attacks.signs` calls them.

Numba compiles them, once for a machine. They take addresses, so that a call costs a microsecond: a network has many
layers. Signs are two bits an entry: which of sixteen entries are positive, then which are negative. What a rectifier
passed is one. Compilers do not make
such masks of a loop by themselves, though processors compute them at once, so here they are spelled out in LLVM's terms.
"""

import ctypes

from llvmlite import ir
from numba import carray, cfunc, float32, intp, types, uint16, void
from numba.extending import intrinsic

from fa_utils.attacks.signs import WIDTH

Floats, Masks = types.CPointer(float32), types.CPointer(uint16)
Loop = void(Floats, Masks, float32, Floats, intp)  # values, masks, a number, what to write to, how many

_mask = ir.IntType(WIDTH)
_flags = ir.VectorType(ir.IntType(1), WIDTH)
_vector = ir.VectorType(ir.FloatType(), WIDTH)


def _spread(builder, number):
    """A vector that repeats one number."""
    first = builder.insert_element(ir.Constant(_vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None))


def _at(builder, pointer, block, kind):
    """The address of the sixteen entries of a block."""
    start = builder.gep(pointer, [builder.mul(block, ir.Constant(block.type, WIDTH))])
    return builder.bitcast(start, kind.as_pointer())


def _scaled(builder, entries, number):
    """Entries times a number: zero if that is zero, also of infinity."""
    zero = ir.Constant(_vector, None)
    flat = builder.fcmp_ordered("==", number, ir.Constant(ir.FloatType(), 0))
    return builder.select(flat, zero, builder.fmul(entries, _spread(builder, number)))


@intrinsic
def _masks(context, values, block):
    """Which entries of a block are positive, and which negative."""

    def build(codegen, builder, signature, arguments):
        block = builder.load(_at(builder, *arguments, _vector), align=4)
        zero = ir.Constant(_vector, None)
        found = [builder.bitcast(builder.fcmp_ordered(order, block, zero), _mask) for order in "><"]
        return codegen.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(uint16, 2)(Floats, intp), build


@intrinsic
def _add_block(context, values, block, positive, negative, size):
    """Add ``size`` to the entries of a block that are flagged positive, take it from those flagged negative."""

    def build(codegen, builder, signature, arguments):
        values, block, positive, negative, size = arguments
        address = _at(builder, values, block, _vector)
        up, zero = _spread(builder, size), ir.Constant(_vector, None)
        down = builder.fsub(zero, up)
        change = builder.select(builder.bitcast(negative, _flags), down, zero)
        change = builder.select(builder.bitcast(positive, _flags), up, change)
        builder.store(builder.fadd(builder.load(address, align=4), change), address, align=4)
        return codegen.get_dummy_value()

    return void(Floats, intp, uint16, uint16, float32), build


@intrinsic
def _rectify_block(context, values, block, slope):
    """Multiply the entries of a block that are negative or zero by ``slope``; which are left as they are."""

    def build(codegen, builder, signature, arguments):
        values, block, slope = arguments
        address = _at(builder, values, block, _vector)
        entries = builder.load(address, align=4)
        flags = builder.fcmp_unordered(">", entries, ir.Constant(_vector, None))  # NaN passes, so that it is noticed
        builder.store(builder.select(flags, entries, _scaled(builder, entries, slope)), address, align=4)
        return builder.bitcast(flags, _mask)

    return uint16(Floats, intp, float32), build


@intrinsic
def _scale_block(context, values, block, positive, slope, out):
    """Into ``out`` the entries of a block, times ``slope`` where they are not flagged."""

    def build(codegen, builder, signature, arguments):
        values, block, positive, slope, out = arguments
        entries = builder.load(_at(builder, values, block, _vector), align=4)
        chosen = builder.select(builder.bitcast(positive, _flags), entries, _scaled(builder, entries, slope))
        builder.store(chosen, _at(builder, out, block, _vector), align=4)
        return codegen.get_dummy_value()

    return void(Floats, intp, uint16, float32, Floats), build


@cfunc(Loop, cache=True)
def _sign(values, masks, _, __, count):
    masks = carray(masks, (count // WIDTH + 1, 2))
    for block in range(count // WIDTH):
        masks[block] = _masks(values, block)
    values = carray(values, count)
    rest = count // WIDTH
    if rest * WIDTH < count:  # else the next block may be another thread's
        masks[rest] = 0
    for i in range(rest * WIDTH, count):
        bit = uint16(1 << (i - rest * WIDTH))
        if values[i] > 0:
            masks[rest, 0] |= bit
        elif values[i] < 0:
            masks[rest, 1] |= bit


@cfunc(Loop, cache=True)
def _add(values, masks, size, _, count):
    masks = carray(masks, (count // WIDTH + 1, 2))
    for block in range(count // WIDTH):
        _add_block(values, block, masks[block, 0], masks[block, 1], size)
    values = carray(values, count)
    rest = count // WIDTH
    for i in range(rest * WIDTH, count):
        bit = i - rest * WIDTH
        values[i] += size * (float32((masks[rest, 0] >> bit) & 1) - float32((masks[rest, 1] >> bit) & 1))


@cfunc(Loop, cache=True)
def _rectify(values, masks, slope, _, count):
    masks = carray(masks, count // WIDTH + 1)
    for block in range(count // WIDTH):
        masks[block] = _rectify_block(values, block, slope)
    values = carray(values, count)
    rest = count // WIDTH
    if rest * WIDTH < count:
        masks[rest] = 0
    for i in range(rest * WIDTH, count):
        if values[i] <= 0:
            values[i] = slope * values[i] if slope else float32(0)
        else:
            masks[rest] |= uint16(1 << (i - rest * WIDTH))


@cfunc(Loop, cache=True)
def _scale(values, masks, slope, out, count):
    masks = carray(masks, count // WIDTH + 1)
    for block in range(count // WIDTH):
        _scale_block(values, block, masks[block], slope, out)
    values, out = carray(values, count), carray(out, count)
    rest = count // WIDTH
    for i in range(rest * WIDTH, count):
        positive = (masks[rest] >> (i - rest * WIDTH)) & 1
        out[i] = values[i] if positive else slope * values[i] if slope else float32(0)


_call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_ssize_t)
sign, add, rectify, scale = (_call(loop.address) for loop in (_sign, _add, _rectify, _scale))
