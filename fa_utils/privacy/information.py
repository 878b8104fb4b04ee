"""How much templates tell about a label: the variational CLUB estimate (paper 2, section 4.1; Cheng et al. 2020).

CLUB bounds mutual information from above when the head is close to the true conditional probability. With a head that
is not, it may lie anywhere, below zero too; a head has to be judged on templates that it was not trained on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fa_utils.privacy.checks import check_features, check_labels
from fa_utils.privacy.perceptron import Perceptron, fit_perceptron, seeded


class ClubHead(Perceptron):
    """The variational q(label | template): linear, rectifier, linear to two logits (paper 2, section 4.1).

    Parameters
    ----------
    dim : int
        Length of a template.
    hidden : int
        256 in the paper, and in ``CLUBForCategorical`` of CLUB's authors.
    """

    def __init__(self, dim: int, *, hidden: int = 256):
        super().__init__(dim, hidden=hidden, outputs=2, slope=0.0)


def train_club(
    features,
    labels,
    *,
    iterations: int = 15000,
    batch: int = 128,
    learning_rate: float = 1e-3,
    hidden: int = 256,
    seed: int = 0,
    checkpoints: Sequence[int] = (),
    progress: bool = False,
) -> dict[int, ClubHead]:
    """Heads of maximum likelihood (cross-entropy), after several numbers of iterations.

    The paper gives the iterations (5,000, 15,000 and 23,700); Adam, its rate and the batch are ours (sheet 2, section 2).

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        Clean templates; the heads come on the device of the tensor.
    labels : array or Tensor, shape (N,)
        0 or 1, both present.
    iterations, batch, learning_rate, hidden, seed
        15,000 iterations over 128-dimensional templates take some ten seconds on one core.
    checkpoints : sequence of int in [1, iterations]
        Further iterations after which to keep a head.
    progress : bool
        Show a progress bar (on a terminal).

    Returns
    -------
    dict
        Iteration -> frozen head in evaluation mode, for the checkpoints and for ``iterations``. A checkpoint is the head
        that a training of so many iterations ends with.

    Raises
    ------
    ValueError
        When features or labels are refused (see :mod:`fa_utils.privacy.checks`) or an option is out of its range.
    """
    rows = check_features(features).detach().float()
    labels = torch.as_tensor(check_labels(labels, len(rows)), device=rows.device)
    head = seeded(lambda: ClubHead(rows.shape[1], hidden=hidden), seed).to(rows.device)
    return fit_perceptron(
        head, rows, torch.nn.functional.one_hot(labels, 2).float(), iterations=iterations, batch=batch,
        learning_rate=learning_rate, seed=seed, checkpoints=checkpoints, progress=progress,
    )  # fmt: skip


def information_per_image(head, features, labels) -> Tensor:
    """Each image's share of the estimate: log q(y_i | f_i) less its mean over the labels of all images (eq. 7).

    Parameters
    ----------
    head : callable
        Templates (N, D) to two logits (N, 2).
    features : Tensor or array, shape (N, D)
        A tensor that asks for its gradient gets it.
    labels : array or Tensor, shape (N,)
        0 or 1, both present: with a single label the estimate is zero whatever the head says.

    Returns
    -------
    Tensor, shape (N,), float64
        Nats. The terms j = i are in the mean, as in the paper and in the code of CLUB's authors.

    Raises
    ------
    ValueError
        When features or labels are refused.
    """
    rows = check_features(features)
    rows = rows if rows.is_floating_point() and rows.requires_grad else rows.float()
    labels = torch.as_tensor(check_labels(labels, len(rows)), device=rows.device)
    logits = head(rows).double()
    shares = torch.bincount(labels, minlength=2).double() / len(labels)
    # The softmax's normalizer is the same in both terms of eq. 7 and cancels.
    return logits.gather(1, labels[:, None])[:, 0] - logits @ shares


@torch.no_grad()
def club_estimate(head, features, labels) -> float:
    """The vCLUB estimate of the mutual information of templates and labels (eq. 7), in nats; see :func:`information_per_image`.

    An upper bound as far as the head is the true conditional; at most ln 2 = 0.69 nats can be there to bound, so an
    estimate far above says that the head is sure of itself, not that there is more.
    """
    return float(information_per_image(head, features, labels).mean())
