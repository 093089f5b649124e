"""The grid of both papers: what has to be trained, attacked and judged for each table and figure.

The tables are the rows of `published.load_published`; the figures, of which no numbers are
published, are listed here. Either names *measurements*: a model, one of its hardened forms or
none, an attack, and a quantity of the record that judges it.
"""

import dataclasses
from collections.abc import Iterable

from configs.reproduce import GENERATORS, WEIGHTS, weighted
from launch.reproduce import published

DATASETS = {"FLICKR-25K": "flickr25k", "NUS-WIDE": "nuswide", "MS-COCO": "coco"}
_OBJECTIVES = {"DPH": "dph", "DPSH": "dpsh", "HashNet": "hashnet", "CSQ": "csq"}
_PAPERS = {"SAAT": "saat", "ProS-GAN": "prosgan"}
# Where the papers do not state the bits (SAAT, Tables VII and VIII).
_LIKELY_BITS = "32"

# By the name that the papers print; SAAT's attack has two forms.
_ATTACKS = {
    "Original": "benign",
    "Noise": "noise",
    "HAG": "hag",
    "SDHA": "sdha",
    "P2P": "p2p",
    "DHTA": "dhta",
    "DHTA+FGSM": "dhta_fgsm",
    "DHTA+I-FGSM": "dhta_ifgsm",
    "ProS-GAN": "prosgan",
    "THA": "tha",
    "SAAT": "mainstay",
}
# Quantities of a record, and the factor of their printed unit.
_QUANTITIES = {
    "MAP": ("metrics", "map", 100.0),
    "t-MAP": ("metrics", "t_map", 100.0),
    "theory-MAP": ("metrics", "theory_map", 100.0),
    "theory-t-MAP": ("metrics", "theory_t_map", 100.0),
    "matrix-norm-Linf": ("perturbation", "matrix_norm_linf", 1.0),
    "matrix-norm-L2": ("perturbation", "matrix_norm_l2", 1.0),
    "MSEx1e-4": ("perturbation", "mse", 1e4),
    "Per_x1e-2": ("perturbation", "root_mean_square", 1e2),
    "time_s_per_image": ("", "seconds_per_image", 1.0),
}


@dataclasses.dataclass(frozen=True, order=True)
class GridModel:
    """A hashing network to train: in all its forms, one run.

    Attributes:
        paper: "saat" or "prosgan", whose protocol and settings it has.
        dataset: "flickr25k", "nuswide" or "coco".
        objective: one of `objectives.OBJECTIVES`.
        network: one of `networks.NETWORKS`.
        num_bits: code length.
    """

    paper: str
    dataset: str
    objective: str
    network: str
    num_bits: int

    @property
    def name(self) -> str:
        """The name of its run."""
        return "-".join(map(str, dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True, order=True)
class Measurement:
    """A quantity of a record.

    Attributes:
        model: the network that was attacked.
        form: "pretrained", or a defence of the run.
        attack: name of the record: an attack of the run, or "benign".
        section: where in the record the quantity is.
        quantity: its name there.
        factor: from the record's unit to the printed one.
        target: the network that judged, where it is not the one that was attacked.
    """

    model: GridModel
    form: str
    attack: str
    section: str = "metrics"
    quantity: str = "map"
    factor: float = 100.0
    target: GridModel | None = None


def _transferred(row: published.Published, name: str) -> GridModel:
    objective, network, bits = name.split("-")
    return GridModel(
        _PAPERS[row.paper],
        DATASETS[row.dataset],
        _OBJECTIVES[objective],
        network.lower(),
        int(bits),
    )


def measurement(row: published.Published) -> Measurement:
    """What has to be measured for a published figure."""
    kind, _, _ = row.metric.partition("@")
    section, quantity, factor = _QUANTITIES[kind]
    attack = _ATTACKS[row.attack]
    if quantity in ("t_map", "theory_t_map") and attack == "mainstay":
        attack = "mainstay_targeted"
    if row.table == "VI" and row.iterations:
        attack = {"0": "benign", "100": "mainstay"}.get(
            row.iterations, f"mainstay_{row.iterations}"
        )
    if row.target_model:
        target = _transferred(row, row.target_model)
        source = _transferred(row, row.source_model) if row.source_model else target
        return Measurement(source, "pretrained", attack, section, quantity, factor, target)
    model = GridModel(
        _PAPERS[row.paper],
        DATASETS[row.dataset],
        _OBJECTIVES[row.hashing_method],
        row.backbone.lower(),
        int(row.bits or _LIKELY_BITS),
    )
    form = "pretrained" if row.defense == "none" else row.defense.lower()
    return Measurement(model, form, attack, section, quantity, factor)


def source(point: Measurement, *, one_set: bool) -> Measurement:
    """What tells measurements apart: all but the data set, where one set stands for all."""
    if not one_set:
        return point
    model = dataclasses.replace(point.model, dataset="")
    target = point.target and dataclasses.replace(point.target, dataset="")
    return dataclasses.replace(point, model=model, target=target)


@dataclasses.dataclass(frozen=True)
class PanelSpec:
    """A part of a figure.

    Attributes:
        kind: "precision_recall" or "precision_at_n", curves; "sweep", lines of points;
            "retrieval" or "images", rows of pictures.
        title: what stands above it.
        lines: by label, (x, measurement); x counts in a sweep alone.
        x_label: of a sweep.
        top: how many retrieved images are shown.
    """

    kind: str
    title: str
    lines: dict[str, list[tuple[float, Measurement]]]
    x_label: str = ""
    top: int = 5


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """A figure of a paper: its id ("saat:fig3"), title and panels."""

    id: str
    title: str
    panels: list[PanelSpec]
    note: str = ""


_AWAY = {"Original": "benign", "HAG": "hag", "SDHA": "sdha", "SAAT": "mainstay"}
_TOWARDS = {
    "P2P": "p2p",
    "DHTA": "dhta",
    "THA": "tha",
    "ProS-GAN": "prosgan",
    "SAAT": "mainstay_targeted",
}
_PROSGAN = {
    "Original": "benign",
    "Noise": "noise",
    "P2P": "p2p",
    "DHTA": "dhta",
    "ProS-GAN": "prosgan",
}


def _saat(dataset: str) -> GridModel:
    return GridModel("saat", DATASETS[dataset], "dph", "alexnet", 32)


def _prosgan(dataset: str, bits: int = 32) -> GridModel:
    return GridModel("prosgan", DATASETS[dataset], "dpsh", "vgg11", bits)


def _panel(
    kind: str, title: str, model: GridModel, attacks: dict[str, str], *, top: int = 5
) -> PanelSpec:
    lines = {
        label: [(0.0, Measurement(model, "pretrained", attack))]
        for label, attack in attacks.items()
    }
    return PanelSpec(kind, title, lines, top=top)


def _weight_panel(option: str, title: str, published: float, x_label: str) -> PanelSpec:
    """MAP of models hardened with different weights, clean and attacked."""
    lines: dict[str, list[tuple[float, Measurement]]] = {}
    for label in ("Original", "SAAT"):
        values = sorted({*WEIGHTS[option], published})
        lines[label] = [
            (
                value,
                Measurement(
                    _saat("NUS-WIDE"),
                    "saat" if value == published else weighted(option, value),
                    _AWAY[label],
                ),
            )
            for value in values
        ]
    return PanelSpec("sweep", title, lines, x_label)


def _generator_panels() -> list[PanelSpec]:
    """ProS-GAN's Fig. 4: its ablations by bits, and the weight of its reconstruction."""
    names = {"GAN": "gan", "ProS-GAN1": "prosgan1", "ProS-GAN": "prosgan"}
    by_bits: dict[str, list[tuple[float, Measurement]]] = {
        label: [
            (bits, Measurement(_prosgan("NUS-WIDE", bits), "pretrained", attack, quantity="t_map"))
            for bits in (12, 24, 32, 48)
        ]
        for label, attack in names.items()
    }
    weights = {50.0: "prosgan"} | {
        changes["reconstruction_weight"]: name
        for name, changes in GENERATORS.items()
        if "reconstruction_weight" in changes
    }

    def points(section: str, quantity: str, factor: float) -> list[tuple[float, Measurement]]:
        model = _prosgan("NUS-WIDE")
        return [
            (w, Measurement(model, "pretrained", weights[w], section, quantity, factor))
            for w in sorted(weights)
        ]

    return [
        PanelSpec("sweep", "(a) t-MAP by bits", by_bits, "bits"),
        PanelSpec(
            "sweep",
            "(b) t-MAP by weight of the reconstruction",
            {"t-MAP": points("metrics", "t_map", 100.0)},
            "alpha",
        ),
        PanelSpec(
            "sweep",
            "(b) perceptibility by weight of the reconstruction",
            {"Per.": points("perturbation", "root_mean_square", 100.0)},
            "alpha",
        ),
    ]


def _figures() -> Iterable[FigureSpec]:
    for number, kind, name in (
        (3, "precision_recall", "Precision-recall curves"),
        (4, "precision_at_n", "Precision of the first N"),
    ):
        yield FigureSpec(
            f"saat:fig{number}",
            f"{name}, 32 bits",
            [
                _panel(kind, f"{dataset}, {aim}", _saat(dataset), attacks)
                for dataset in ("FLICKR-25K", "MS-COCO")
                for aim, attacks in (("non-targeted", _AWAY), ("targeted", _TOWARDS))
            ],
        )
    examples = {"benign": "benign", "non-targeted": "mainstay", "targeted": "mainstay_targeted"}
    yield FigureSpec(
        "saat:fig5",
        "What queries retrieve, NUS-WIDE",
        [_panel("retrieval", "the first five", _saat("NUS-WIDE"), examples)],
    )
    yield FigureSpec(
        "saat:fig6",
        "MAP of the hardened network by the weights of its losses, NUS-WIDE",
        [
            _weight_panel("adversarial_weight", "(a) adversarial loss", 1.0, "lambda"),
            _weight_panel("quantization_weight", "(b) quantisation", 1e-4, "mu"),
        ],
        note="The paper does not list its weights; these are ours.",
    )
    yield FigureSpec(
        "saat:fig7",
        "Adversarial images",
        [_panel("images", d, _saat(d), {"SAAT": "mainstay"}) for d in DATASETS],
    )
    yield FigureSpec(
        "prosgan:fig2",
        "Precision-recall curves and precision of the first N, 32 bits",
        [
            _panel(kind, dataset, _prosgan(dataset), _PROSGAN)
            for kind in ("precision_recall", "precision_at_n")
            for dataset in DATASETS
        ],
    )
    pair = {"benign": "benign", "ProS-GAN": "prosgan"}
    for number, top in ((3, 5), (5, 10)):
        yield FigureSpec(
            f"prosgan:fig{number}",
            "What queries retrieve, NUS-WIDE",
            [_panel("retrieval", f"the first {top}", _prosgan("NUS-WIDE"), pair, top=top)],
        )
    yield FigureSpec(
        "prosgan:fig4",
        "ProS-GAN without its parts, and the weight of its reconstruction, NUS-WIDE",
        _generator_panels(),
        note="The paper does not list its weights; these are ours.",
    )
    yield FigureSpec(
        "prosgan:fig6",
        "Adversarial images",
        [_panel("images", d, _prosgan(d), {"ProS-GAN": "prosgan"}) for d in DATASETS],
    )


FIGURES = {figure.id: figure for figure in _figures()}


def rows_of(tables: Iterable[str]) -> list[published.Published]:
    """The published figures of some tables."""
    wanted = set(tables)
    return [row for row in published.load_published() if row.table_id in wanted]


def needed(rows: Iterable[published.Published], figures: Iterable[FigureSpec]) -> list[Measurement]:
    """All that has to be measured for some rows and figures, each once, in their order."""
    found = [measurement(row) for row in rows]
    for figure in figures:
        for panel in figure.panels:
            found += [point for line in panel.lines.values() for _, point in line]
    return list(dict.fromkeys(found))
