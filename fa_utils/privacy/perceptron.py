"""One hidden layer on top of templates, and a training loop for it that wastes no time.

Both small networks of chapter 2 have this shape: the CLUB head (rectifier, two logits) and the gender classifier (leaky
rectifier, one logit). A batch takes a few hundred microseconds of arithmetic, of which autograd's bookkeeping would be
more than half; so the four gradients are written out, into one buffer, from which Adam updates all weights at once.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

ADAM = (0.9, 0.999)  # decay of the gradient's mean and mean square; Kingma and Ba, and torch
ADAM_EPS = 1e-8


class Perceptron(nn.Module):
    """Linear, (leaky) rectifier, linear.

    Parameters
    ----------
    dim : int
        Length of a template.
    hidden : int
        Units of the hidden layer.
    outputs : int
        Logits.
    slope : float
        Of the rectifier below zero; 0 is the plain one.
    """

    def __init__(self, dim: int, *, hidden: int, outputs: int, slope: float):
        super().__init__()
        self.slope = slope
        self.inner = nn.Linear(dim, hidden)
        self.outer = nn.Linear(hidden, outputs)

    def hidden(self, features: Tensor) -> Tensor:
        """Hidden units after the rectifier, (B, hidden)."""
        return _rectify(self.inner(features), self.slope)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, outputs) of features (B, dim)."""
        return self.outer(self.hidden(features))

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the logits stand for: softmax of several, sigmoid of one."""
        return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def seeded(build, seed: int):
    """What ``build()`` returns with torch's random numbers seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def frozen(model: nn.Module) -> nn.Module:
    """The model, for use only: no gradients of its weights, evaluation mode."""
    return model.eval().requires_grad_(False)


@torch.no_grad()
def fit_perceptron(
    model: Perceptron,
    features: Tensor,
    targets: Tensor,
    *,
    iterations: int,
    batch: int,
    learning_rate: float,
    seed: int,
    checkpoints: Sequence[int] = (),
    progress: bool = False,
) -> dict[int, Perceptron]:
    """Adam on the cross-entropy of batches that walk through one shuffled order of the rows after the other.

    Parameters
    ----------
    model : Perceptron
        The start; left as it is.
    features : Tensor, shape (N, dim)
        Float32, on the model's device.
    targets : Tensor, shape (N, outputs)
        Wanted probabilities: one-hot rows, or a column of 0 and 1.
    iterations, batch, learning_rate
        As their names say; a batch is never larger than N.
    seed : int
        Of the order of the rows.
    checkpoints : sequence of int in [1, iterations]
        After which iterations to keep a copy. The copies are those that shorter trainings would end with.
    progress : bool
        Show a progress bar (on a terminal).

    Returns
    -------
    dict
        Iteration -> frozen model, for the checkpoints and for ``iterations``.

    Raises
    ------
    ValueError
        When an option is out of its range.
    """
    if iterations < 1 or batch < 1 or not learning_rate > 0:
        given = f"iterations = {iterations}, batch = {batch} and learning_rate = {learning_rate:g}"
        raise ValueError(f"{given}: the first two must be at least 1, the third above 0")
    wrong = [step for step in checkpoints if not 1 <= step <= iterations]
    if wrong:
        raise ValueError(f"checkpoints must lie in 1 to {iterations}, the iterations, got {wrong}")
    kept, saved = {*checkpoints, iterations}, {}
    flat = torch.cat([weight.flatten() for weight in model.parameters()])
    gradient, mean, square = torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(flat)
    (w1, b1, w2, b2), (dw1, db1, dw2, db2) = _split(flat, model), _split(gradient, model)
    batches = _batches(len(features), iterations, min(batch, len(features)), seed).to(features.device)
    for step, rows in enumerate(tqdm(batches, disable=None if progress else True, leave=False), start=1):
        x = features.index_select(0, rows)
        before = torch.addmm(b1, x, w1.t())
        units = _rectify(before, model.slope)
        # The gradient of the mean cross-entropy by the logits, for softmax and sigmoid alike.
        error = (model.probabilities(torch.addmm(b2, units, w2.t())) - targets.index_select(0, rows)).div_(len(rows))
        torch.mm(error.t(), units, out=dw2)
        torch.sum(error, 0, out=db2)
        back = _rectify_back(error @ w2, before, model.slope)
        torch.mm(back.t(), x, out=dw1)
        torch.sum(back, 0, out=db1)
        mean.lerp_(gradient, 1 - ADAM[0])
        square.mul_(ADAM[1]).addcmul_(gradient, gradient, value=1 - ADAM[1])
        spread = square.sqrt().div_(math.sqrt(1 - ADAM[1] ** step)).add_(ADAM_EPS)
        flat.addcdiv_(mean, spread, value=-learning_rate / (1 - ADAM[0] ** step))
        if step in kept:
            saved[step] = _with_weights(model, flat)
    return saved


def _rectify(values: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(values, slope) if slope else F.relu(values)  # the plain one is several times faster


def _rectify_back(gradient: Tensor, before: Tensor, slope: float) -> Tensor:
    if slope:
        return torch.ops.aten.leaky_relu_backward(gradient, before, slope, False)
    return torch.ops.aten.threshold_backward(gradient, before, 0)


def _split(flat: Tensor, model: Perceptron) -> list[Tensor]:
    weights = list(model.parameters())
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights)]


def _with_weights(model: Perceptron, flat: Tensor) -> Perceptron:
    model = copy.deepcopy(model)
    for weight, part in zip(model.parameters(), _split(flat, model)):
        weight.copy_(part)
    return frozen(model)


def _batches(n: int, iterations: int, batch: int, seed: int) -> Tensor:
    """Row numbers (iterations, batch): shuffled orders of all rows, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-iterations * batch // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[: iterations * batch].view(iterations, batch)
