"""How each network of the zoo is trained: one record a network.

The first ten are DFANet's surrogates: four training sets (Table I), four losses (Table III) and four
layouts (Table IV), which share ``ires-webface-softmax``. Five of them and the ten that follow are the fifteen of the
gradient-eroding paper. Adversarially trained networks have their recipes in ``fa_utils.defenses``.
"""

import dataclasses
import difflib

LOSSES = ("softmax", "triplet", "cosface", "arcface", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a network becomes, apart from its training pictures.

    Attributes
    ----------
    name : str
        Name in the zoo, ``layout-domain-loss``.
    layout, width : str
        Architecture, as ``build_backbone`` knows it.
    loss : {"softmax", "triplet", "cosface", "arcface", "linear"}
        Training loss; "linear" is for attributes.
    attribute : str or None
        Column of labels that is learned instead of the identity.
    domain : str
        Training domain, as ``load_domain`` knows it.
    start : str or None
        Network whose weights training starts from. FaceNet's triplets need a start: from scratch the
        hardest negatives of a batch pull all embeddings together.
    epochs : int
        Passes through the training pictures.
    batch : int
        Pictures in a batch.
    learning_rate : float
        Peak of the cosine schedule.
    warm_up : int
        Steps over which the learning rate rises linearly.
    momentum, weight_decay, gradient_clip : float
        SGD with Nesterov momentum; no decay on normalization weights and biases; 2-norm of the
        backbone's gradient.
    scale : float
        Inverse temperature of the cosine logits. Without a margin it must be low: at 32 the cross-entropy of
        3,200 identities is spent at a cosine of 0.6 to the own class, at 16 not before 0.8.
    margin : float
        Cosine margin (CosFace), angle in radians (ArcFace), or difference of squared distances (triplet).
    ramp : tuple of float
        Share of training at which the margin leaves 0, and at which it is complete.
    spread : float
        Weight of the mean squared cosine between different identities of a batch. It lowers the
        threshold at a fixed false accept rate.
    whitening : float
        Exponent alpha of the partial whitening fitted after training; 0 for none.
    seed : int
        Seed of initialization, order and augmentation.
    keep_classifier : bool
        Whether the classification head ships: label-level attacks need it, and it is large.
    """

    name: str
    layout: str
    loss: str
    domain: str
    width: str = "small"
    start: str | None = None
    epochs: int = 6
    batch: int = 128
    learning_rate: float = 0.1
    warm_up: int = 150
    momentum: float = 0.9
    weight_decay: float = 5e-4
    gradient_clip: float = 5.0
    scale: float = 32.0
    margin: float = 0.0
    ramp: tuple[float, float] = (0.05, 0.35)
    spread: float = 15.0
    whitening: float = 0.4
    seed: int = 0
    keep_classifier: bool = False
    attribute: str | None = None

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(
                f"recipe {self.name!r}: loss {self.loss!r} is unknown{nearest(self.loss, LOSSES)}"
            )
        for field in ("epochs", "batch", "learning_rate", "scale", "gradient_clip"):
            if getattr(self, field) <= 0:
                raise ValueError(f"recipe {self.name!r}: {field} is {getattr(self, field)}, must be above 0")
        if (self.loss == "linear") != (self.attribute is not None):
            raise ValueError(f"recipe {self.name!r}: loss 'linear' and an attribute go together, got {self.loss!r} and {self.attribute!r}")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"recipe {self.name!r}: whitening is {self.whitening}, must lie in [0, 1]")


def nearest(name: str, known) -> str:
    """End of an error message: the nearest of the known names, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(known)}."


def _softmax(layout: str, domain: str, seed: int, **options) -> Recipe:
    base = {"loss": "softmax", "scale": 16.0} | options
    return Recipe(name=f"{layout}-{domain}-softmax", layout=layout, domain=domain, seed=seed, **base)


def _arcface(layout: str, domain: str, seed: int, **options) -> Recipe:
    base = {"loss": "arcface", "margin": 0.3, "whitening": 0.6, "epochs": 5} | options
    return Recipe(name=f"{layout}-{domain}-arcface", layout=layout, domain=domain, seed=seed, **base)


def _attribute(layout: str, attribute: str, seed: int) -> Recipe:
    return Recipe(
        name=f"{layout}-celeba-{attribute}",
        layout=layout,
        domain="celeba",
        loss="linear",
        attribute=attribute,
        epochs=8,
        learning_rate=0.05,
        spread=0.0,
        whitening=0.0,
        seed=seed,
        keep_classifier=True,
    )


def _webface(loss: str, seed: int, **options) -> Recipe:
    return Recipe(
        name=f"ires-webface-{loss}", layout="ires", loss=loss, domain="webface", seed=seed, **options
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _softmax("ires", "webface", 1, keep_classifier=True),
        _softmax("ires", "imdb", 2, keep_classifier=True),
        _softmax("ires", "vggface2", 3, keep_classifier=True),
        _softmax("ires", "ms1m", 4, keep_classifier=True),
        _webface("triplet", 5, start="ires-webface-softmax", margin=0.2, learning_rate=0.02, epochs=3),
        _webface("cosface", 6, margin=0.25),
        _webface("arcface", 7, margin=0.3, whitening=0.6),
        _softmax("irse", "webface", 8),
        _softmax("mobile", "webface", 9),
        _softmax("incres", "webface", 10, epochs=8, scale=32.0, whitening=0.0),
        _arcface("ires12", "webface", 21),
        _arcface("ires16", "webface", 22),
        _softmax("incres", "vggface2", 23, epochs=8, scale=32.0, whitening=0.0),
        _arcface("resnet50", "ms1m", 24, whitening=0.8),
        _arcface("shuffle", "ms1m", 25),
        _arcface("mobilenet", "ms1m", 26),
        _arcface("irse12", "ms1m", 27),
        _arcface("ir12", "ms1m", 28),
        _arcface("ir12", "imdb", 29),
        _arcface("ir20", "ms1m", 30),
        _softmax("vgg16", "vggface2", 41, epochs=8, whitening=0.6),
        _arcface("ires", "vggface2", 42),
    )
}
# Classifiers of an attribute (chapter 1): two layouts that learn gender, and the same two for an unrelated attribute.
ATTRIBUTE_RECIPES = {
    recipe.name: recipe
    for recipe in (
        _attribute("vgg16", "gender", 51),
        _attribute("resnet50", "gender", 52),
        _attribute("vgg16", "glasses", 53),
        _attribute("resnet50", "glasses", 54),
    )
}
# The fifteen networks of Zhou et al. (2023), and the stand-in of each.
ERODING_LIBRARY = {
    "InsightFace_mobilefacenet": "mobile-webface-softmax",
    "InsightFace_IR_SE50": "irse-webface-softmax",
    "CosFace": "ires-webface-cosface",
    "FaceNet_casia": "incres-webface-softmax",
    "FaceNet_vggface2": "incres-vggface2-softmax",
    "ArcFace": "irse12-ms1m-arcface",
    "MobileNet": "mobilenet-ms1m-arcface",
    "ResNet50": "resnet50-ms1m-arcface",
    "ShuffleNet": "shuffle-ms1m-arcface",
    "evoLVe_IR_152": "ir20-ms1m-arcface",
    "evoLVe_IR_50": "ir12-ms1m-arcface",
    "evoLVe_IR_50_Asia": "ir12-imdb-arcface",
    "MXNET_LResNet34E_IR": "ires-webface-arcface",
    "MXNET_LResNet50E_IR": "ires12-webface-arcface",
    "MXNET_LResNet100E_IR": "ires16-webface-arcface",
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a network of the zoo.

    Raises
    ------
    ValueError
        If the name is unknown; the nearest known name is offered.
    """
    known = RECIPES | ATTRIBUTE_RECIPES
    if name not in known:
        raise ValueError(f"network {name!r} is unknown{nearest(name, known)}")
    return known[name]
