"""Tidy a network that onnx2torch converted, without changing what it computes.

* Slices and reshapes with constant bounds become static: the originals read their bounds back from the
  device.
* PReLU becomes the module with the fast backward pass.
* Sums of a branch with its own input become residual units with hookable branches.
* Convolutions inside squeeze-and-excitation gates are marked, so that `FaceEncoder.convolutions` can skip
  them.
"""

import torch
from torch import fx, nn

from fa_utils.models.prelu import PReLU

Ancestors = dict[fx.Node, frozenset[fx.Node]]


def tidy(net: fx.GraphModule) -> fx.GraphModule:
    """Apply all passes to a network converted by onnx2torch, in place."""
    make_static(net)
    replace_prelu_nodes(net)
    ancestors = input_ancestors(net)
    mark_gates(net)
    expose_residuals(net, ancestors)
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()
    return net


def kind(net: fx.GraphModule, node: object) -> str:
    """Class name of the module that a node calls; empty for other nodes and for constants as arguments."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return type(net.get_submodule(node.target)).__name__ if is_call else ""


def constant(net: fx.GraphModule, node: object) -> torch.Tensor | None:
    """The value of a constant node, else None."""
    if kind(net, node) == "OnnxConstant":
        return torch.as_tensor(net.get_submodule(node.target).value)
    if isinstance(node, fx.Node) and node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        return getattr(net.get_submodule(owner), name)
    return None


def swap(net: fx.GraphModule, node: fx.Node, module: nn.Module, args: tuple[fx.Node, ...]) -> None:
    """Let ``node`` call ``module`` on ``args`` instead."""
    net.set_submodule(node.target, module)
    node.args, node.kwargs = args, {}


# --- static slices and shapes


class StaticSlice(nn.Module):
    """``x`` with some axes flipped, then sliced; bounds are plain numbers."""

    def __init__(self, slices: dict[int, slice], flips: list[int]) -> None:
        super().__init__()
        self.slices = slices
        self.flips = flips

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.flips:
            x = x.flip(self.flips)
        return x[tuple(self.slices.get(axis, slice(None)) for axis in range(x.ndim))]


class StaticReshape(nn.Module):
    """``x`` in another shape, where 0 keeps an axis and -1 is inferred."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(self.shape)])


def make_static(net: fx.GraphModule) -> None:
    for node in net.graph.nodes:
        if kind(net, node) not in ("OnnxSlice", "OnnxReshape"):
            continue
        names = ("starts", "ends", "axes", "steps") if kind(net, node) == "OnnxSlice" else ("shape",)
        bounds = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        values = {name: constant(net, bound) for name, bound in bounds.items()}
        if any(value is None for value in values.values()):
            continue
        lists = {name: value.tolist() for name, value in values.items()}
        module = StaticReshape(lists["shape"]) if "shape" in lists else static_slice(**lists)
        if module is not None:
            swap(net, node, module, (node.args[0],))


def static_slice(
    starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> StaticSlice | None:
    """A slice along axes counted from the front; None where an axis is counted from the back."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if min(axes) < 0:
        return None
    slices, flips = {}, []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:  # backwards from start to end is forwards in the flipped axis
            flips.append(axis)
            start, end, step = -start - 1, -end - 1, -step
        slices[axis] = slice(start, end, step)
    return StaticSlice(slices, flips)


# --- PReLU


def replace_prelu_nodes(net: fx.GraphModule) -> None:
    for node in net.graph.nodes:
        if kind(net, node) != "OnnxPReLU":
            continue
        slope = constant(net, node.args[1])
        if slope is None or slope.numel() not in (1, slope.shape[0]):
            continue
        module = PReLU(slope.numel())
        module.weight = nn.Parameter(slope.reshape(-1).clone())
        swap(net, node, module, (node.args[0],))


# --- residual units


class Junction(nn.Module):
    """The sum at the end of a residual unit; hooks on ``residual`` or ``shortcut`` see what enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.residual = nn.Identity()
        self.shortcut = nn.Identity()

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.shortcut(shortcut) + self.residual(residual)


def input_ancestors(net: fx.GraphModule) -> Ancestors:
    """For each node that depends on the network's input: all such nodes it depends on, itself included."""
    found: Ancestors = {}
    for node in net.graph.nodes:
        above = frozenset().union(*(found.get(parent, frozenset()) for parent in node.all_input_nodes))
        if node.op == "placeholder" or above:
            found[node] = above | {node}
    return found


def expose_residuals(net: fx.GraphModule, ancestors: Ancestors) -> None:
    """Replace each sum of a value with something computed from that same value.

    Units whose shortcut has layers of its own are left as they are: which branch is which cannot be told
    there.
    """
    for node in net.graph.nodes:
        if not is_binary(net, node, torch.add) or not all(arg in ancestors for arg in node.args):
            continue
        first, second = node.args
        if first in ancestors[second]:
            swap(net, node, Junction(), (first, second))
        elif second in ancestors[first]:
            swap(net, node, Junction(), (second, first))


def is_binary(net: fx.GraphModule, node: object, function: object) -> bool:
    """Whether a node applies this torch function to two values."""
    if kind(net, node) != "OnnxBinaryMathOperation" or len(node.args) != 2:
        return False
    module = net.get_submodule(node.target)
    return module.math_op_function is function and not module.broadcast


# --- squeeze and excitation

GATES = ("Sigmoid", "Hardsigmoid", "OnnxHardSigmoid")
GATE_LAYERS = ("Conv2d", "PReLU", "ReLU", "ReLU6", "OnnxPReLU", "BatchNorm2d", *GATES)


def mark_gates(net: fx.GraphModule) -> None:
    """Mark 1x1 convolutions between a pooling and a sigmoid that multiplies a feature map."""
    for node in net.graph.nodes:
        if kind(net, node) in GATES and any(is_binary(net, user, torch.mul) for user in node.users):
            mark_gate(net, node)


def mark_gate(net: fx.GraphModule, node: fx.Node) -> None:
    convolutions = []
    while kind(net, node) in GATE_LAYERS:
        if kind(net, node) == "Conv2d":
            convolutions.append(net.get_submodule(node.target))
        node = node.args[0]
    pooled = "Pool" in kind(net, node) or "ReduceMean" in kind(net, node)
    if pooled and all(conv.kernel_size == (1, 1) for conv in convolutions):
        for conv in convolutions:
            conv.squeeze_excite = True
