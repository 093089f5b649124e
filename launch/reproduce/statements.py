"""What the papers say of their tables and figures, as comparisons of the numbers there.

Where a paper's text states a figure, a statement has it. The others say in words what a table or
a figure is there to show; that the published numbers bear them out is for `claims` to find.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from launch.reproduce import grid
from launch.reproduce.grid import Measurement
from launch.reproduce.published import Published, load_published

# A published figure, or a point of a figure, of which nothing is published.
Key = Published | Measurement
# One number and its rivals.
Comparison = tuple[Key, tuple[Key, ...]]
_K = TypeVar("_K", bound=Key)


@dataclasses.dataclass(frozen=True)
class Statement:
    """Something a paper says.

    Attributes:
        text: in words.
        kind: how the one and its rivals are compared, as in `claims`.
        comparisons: the cells it is about.
        printed: the figure in the paper's text; empty if there is none.
        bound: of the gap, in its unit.
        mean_by: if each single comparison is to hold, "". Else the name of a field: the mean
            gap of all that have the same value there is.
        unit: of the gap.
    """

    text: str
    kind: str
    comparisons: Sequence[Comparison]
    printed: str = ""
    bound: float = 0
    mean_by: str = ""
    unit: str = "points"


def statements() -> dict[str, list[Statement]]:
    """All that is checked, by paper."""
    rows = load_published()
    return {"SAAT": [*_saat(rows)], "ProS-GAN": [*_prosgan(rows)]}


def run_noise() -> dict[str, tuple[float, float]]:
    """How far apart two trainings are in SAAT's paper: by defence, in the mean and at most.

    Tables III and IV print the MAP of the same benign queries after two trainings.

    Example:
        >>> {name: round(most, 2) for name, (_, most) in run_noise().items()}
        {'ATRDH': 2.39, 'SAAT': 2.43}
    """
    rows = load_published()
    found = {}
    for defense in ("ATRDH", "SAAT"):
        one, other = (
            [row.value for row in _find(rows, table, "Original", defense=defense)]
            for table in ("saat:III", "saat:IV")
        )
        gaps = np.abs(np.subtract(one, other))
        found[defense] = float(gaps.mean()), float(gaps.max())
    return found


@functools.cache
def most_noise() -> float:
    """The largest difference of `run_noise`, in points."""
    return max(most for _, most in run_noise().values())


def _find(
    rows: Iterable[Published], table_id: str, attack: str, metric: str = "", **fields: str
) -> list[Published]:
    """The rows of a table that have some fields, in the papers' order."""
    wanted = {"attack": attack, "table_id": table_id, **fields}
    wanted |= {"metric": metric} if metric else {}
    return [row for row in rows if all(getattr(row, f) == value for f, value in wanted.items())]


def _line(figure: str, panel: int, label: str) -> dict[float, Measurement]:
    """A line of a figure: its points by the setting."""
    return dict(grid.FIGURES[figure].panels[panel].lines[label])


def _pairs(ones: Iterable[_K], *rivals: Iterable[_K]) -> list[tuple[_K, tuple[_K, ...]]]:
    """Compares each with its rivals, one of each list."""
    return list(zip(ones, zip(*rivals, strict=True), strict=True))


def _all_pairs(parts: Iterable[Iterable[Iterable[Key]]]) -> list[Comparison]:
    """The pairs of several lots, each of the ones and their rivals."""
    return [pair for part in parts for pair in _pairs(*part)]


def _steps(line: Iterable[Key]) -> list[Comparison]:
    """Compares each with the one before it."""
    return [(one, (before,)) for before, one in itertools.pairwise(line)]


def _saat(rows: Sequence[Published]) -> Iterator[Statement]:
    find = functools.partial(_find, rows)
    away, steered, defenses = "MAP@5000", "t-MAP@5000", ("ATRDH", "SAAT")
    moving, steering = ("HAG", "SDHA", "SAAT"), ("P2P", "DHTA", "ProS-GAN", "THA", "SAAT")

    def saat_first(table: str, metric: str, *forms: str) -> list[Comparison]:
        """SAAT's attack and all others, on each form."""
        names = steering if steered in metric else moving
        return _all_pairs([find(table, a, metric, defense=d) for a in names[::-1]] for d in forms)

    def hardened(table: str, *attacks: str) -> list[Comparison]:
        """SAAT's defence and ATRDH, under each attack."""
        return _all_pairs([find(table, a, defense=d) for d in defenses[::-1]] for a in attacks)

    yield Statement(
        "Table II: SAAT's attack takes MAP lower than SDHA",
        "below",
        _pairs(find("saat:II", "SAAT", away), find("saat:II", "SDHA")),
        "2.98",
        mean_by="table_id",
    )
    yield Statement(
        "Table II: SAAT's attack leaves the least MAP", "below", saat_first("saat:II", away, "none")
    )
    yield Statement(
        "Table II: SAAT's attack takes t-MAP higher than THA",
        "above",
        _pairs(find("saat:II", "SAAT", steered), find("saat:II", "THA")),
        "1.82, 1.52, 8.95",
        mean_by="dataset",
    )
    yield Statement(
        "Table II: SAAT's attack reaches the most t-MAP",
        "above",
        saat_first("saat:II", steered, "none"),
    )
    yield Statement(
        "Table II: DHTA reaches more t-MAP than P2P",
        "above",
        _pairs(find("saat:II", "DHTA"), find("saat:II", "P2P")),
    )
    for name, attack, printed in (
        ("SDHA", "SDHA", "25.35, 38.72, 23.87"),
        ("SAAT's attack", "SAAT", "24.94, 38.33, 21.22"),
    ):
        yield Statement(
            f"Tables II and III: SAAT's defence gains MAP under {name}",
            "above",
            _pairs(find("saat:III", attack, defense="SAAT"), find("saat:II", attack, away)),
            printed,
            mean_by="dataset",
        )
    yield Statement(
        "Table III: SAAT's defence keeps more MAP than ATRDH under SAAT's attack",
        "above",
        hardened("saat:III", "SAAT"),
        "6.66, 11.60, 8.69",
        mean_by="dataset",
    )
    yield Statement(
        "Table III: SAAT's defence keeps more MAP than ATRDH under every attack",
        "above",
        hardened("saat:III", *moving),
    )
    yield Statement(
        "Table III: SAAT's attack leaves the least MAP of either defence",
        "below",
        saat_first("saat:III", away, *defenses),
    )
    yield Statement(
        "Tables II and III: either defence costs MAP of benign queries",
        "below",
        _all_pairs(
            [find("saat:III", "Original", defense=d), find("saat:II", "Original")] for d in defenses
        ),
    )
    yield Statement(
        "Tables II and IV: SAAT's defence lowers t-MAP under THA",
        "below",
        _pairs(find("saat:IV", "THA", defense="SAAT"), find("saat:II", "THA")),
        "14.71, 32.77, 13.22",
        mean_by="dataset",
    )
    yield Statement(
        "Table IV: SAAT's defence leaves THA less t-MAP than ATRDH does",
        "below",
        hardened("saat:IV", "THA"),
        "5.57, 15.44, 7.52",
        mean_by="dataset",
    )
    yield Statement(
        "Table IV: SAAT's defence leaves every attack less t-MAP than ATRDH does",
        "below",
        hardened("saat:IV", *steering),
    )
    yield Statement(
        "Table IV: SAAT's attack reaches the most t-MAP on either defence",
        "above",
        saat_first("saat:IV", steered, *defenses),
    )
    for kind, metric, what in (("below", away, "least MAP"), ("above", steered, "most t-MAP")):
        yield Statement(
            f"Table V: of all attacks, SAAT's reaches the {what} in theory",
            kind,
            saat_first("saat:V", f"theory-{metric}", "none"),
        )
        yield Statement(
            f"Tables II and V: SAAT's attack comes close to its theory, {metric}",
            "apart",
            _pairs(find("saat:II", "SAAT", metric), find("saat:V", "SAAT", f"theory-{metric}")),
            bound=most_noise(),
        )
    steps = ("0", "1", "10", "50", "100", "500", "1000")
    by_steps = {t: find("saat:VI", "SAAT", iterations=t) for t in steps}
    yield Statement(
        "Table VI: 10 steps take away most of MAP",
        "percent below",
        _pairs(by_steps["10"], by_steps["0"]),
        "more than 82",
        82,
        unit="percent of the original",
    )
    yield Statement(
        "Table VI: the more steps, the lower MAP",
        "below",
        _all_pairs([late, early] for early, late in itertools.pairwise(by_steps.values())),
    )
    yield Statement(
        "Table VI: after 100 steps, 1,000 change little",
        "apart",
        _pairs(by_steps["1000"], by_steps["100"]),
        bound=most_noise(),
    )
    yield Statement(
        "Table VII: by all three measures, SAAT's attack changes images the least",
        "below",
        _all_pairs(
            [find("saat:VII", a, metric) for a in moving[::-1]]
            for metric in ("matrix-norm-Linf", "matrix-norm-L2", "MSEx1e-4")
        ),
        unit="in the paper's units",
    )
    yield Statement(
        "Table VIII: SAAT's attack leaves the least MAP of every method and backbone",
        "below",
        saat_first("saat:VIII", away, "none"),
    )
    yield Statement(
        "Table VIII: SAAT's attack leaves the least MAP of either defence",
        "below",
        saat_first("saat:VIII", away, *defenses),
    )
    yield Statement(
        "Table VIII: SAAT's defence gains MAP under SAAT's attack",
        "above",
        _pairs(*(find("saat:VIII", "SAAT", defense=d) for d in ("SAAT", "none"))),
    )
    yield Statement(
        "Table VIII: SAAT's defence keeps more MAP than ATRDH under every attack",
        "above",
        hardened("saat:VIII", *moving),
    )
    yield Statement(
        "Table VIII: SAAT's defence keeps more MAP of benign queries than ATRDH",
        "above",
        hardened("saat:VIII", "Original"),
    )
    clean, attacked = (_line("saat:fig6", 0, label) for label in ("Original", "SAAT"))
    yield Statement(
        "Figure 6 (a): MAP under attack rises with lambda, up to 1",
        "above",
        _steps(point for x, point in attacked.items() if x <= 1),
    )
    yield Statement(
        "Figure 6 (a): MAP of benign queries falls with lambda", "below", _steps(clean.values())
    )
    lines = {label: _line("saat:fig6", 1, label) for label in ("Original", "SAAT")}
    yield Statement(
        "Figure 6 (b): mu has a small effect",
        "apart",
        [
            (point, (line[1e-4],))
            for line in lines.values()
            for mu, point in line.items()
            if mu != 1e-4
        ],
        bound=most_noise(),
    )
    rest = tuple(point for mu, point in lines["SAAT"].items() if mu != 1e-3)
    yield Statement(
        "Figure 6 (b): MAP under attack is best at mu = 0.001",
        "above",
        [(lines["SAAT"][1e-3], rest)],
    )


def _prosgan(rows: Sequence[Published]) -> Iterator[Statement]:
    find = functools.partial(_find, rows)
    score, seconds = "t-MAP@all", "time_s_per_image"

    def of_both(one: str, *rivals: str, metric: str = score) -> list[Comparison]:
        """An attack and others in Tables 1 and 4."""
        tables = ("prosgan:1", "prosgan:4")
        return _all_pairs([find(t, a, metric) for a in (one, *rivals)] for t in tables)

    def over_dhta(table: str, **fields: str) -> list[tuple[Published, tuple[Published, ...]]]:
        return _pairs(*(find(table, a, score, **fields) for a in ("ProS-GAN", "DHTA")))

    for names, bound in ((("FLICKR-25K", "NUS-WIDE"), 2), (("MS-COCO",), 5)):
        yield Statement(
            f"Table 1: ProS-GAN takes t-MAP higher than DHTA, {' and '.join(names)}",
            "above",
            [pair for name in names for pair in over_dhta("prosgan:1", dataset=name)],
            f"more than {bound}",
            bound,
        )
    yield Statement(
        "Table 1: ProS-GAN takes t-MAP higher than DHTA, MS-COCO, 24 bits",
        "above",
        over_dhta("prosgan:1", dataset="MS-COCO", bits="24"),
        "9.38",
    )
    yield Statement(
        "Tables 1 and 4: ProS-GAN reaches the most t-MAP",
        "above",
        of_both("ProS-GAN", "DHTA", "P2P", "Noise", "Original"),
    )
    yield Statement(
        "Tables 1 and 4: DHTA reaches more t-MAP than P2P", "above", of_both("DHTA", "P2P")
    )
    yield Statement(
        "Tables 1 and 4: noise moves nothing",
        "apart",
        of_both("Noise", "Original"),
        bound=most_noise(),
    )
    yield Statement(
        "Tables 1 and 4: ProS-GAN's prototype code reaches more t-MAP than DHTA's anchor code",
        "above",
        of_both("ProS-GAN", "DHTA", metric=f"theory-{score}"),
    )
    yield Statement(
        "Table 2: ProS-GAN is faster than DHTA, FLICKR-25K",
        "times below",
        _pairs(
            *(find("prosgan:2", a, seconds, dataset="FLICKR-25K") for a in ("ProS-GAN", "DHTA"))
        ),
        "1,660",
        100,
        unit="times, on the same hardware",
    )
    rivals = ("DHTA+FGSM", "DHTA+I-FGSM", "DHTA")
    yield Statement(
        "Table 2: ProS-GAN is the fastest",
        "times below",
        _pairs(*(find("prosgan:2", a, seconds) for a in ("ProS-GAN", *rivals))),
        bound=1,
        unit="times, on the same hardware",
    )
    yield Statement(
        "Table 2: ProS-GAN reaches the most t-MAP",
        "above",
        _pairs(*(find("prosgan:2", a, score) for a in ("ProS-GAN", *rivals))),
    )
    yield Statement(
        "Table 2: ProS-GAN changes images less than DHTA by FGSM or I-FGSM",
        "below",
        _pairs(*(find("prosgan:2", a, "Per_x1e-2") for a in ("ProS-GAN", *rivals[:2]))),
        unit="in the paper's units",
    )
    yield Statement(
        "Table 3: ProS-GAN carries over from AlexNet, 32 bits, to VGG11, 12 bits, more than DHTA",
        "above",
        over_dhta("prosgan:3", source_model="DPSH-AlexNet-32", target_model="DPSH-VGG11-12"),
        "8.37 = 8.84 - 0.47",
    )
    transferred = [pair for n in "367" for pair in over_dhta(f"prosgan:{n}")]
    yield Statement(
        "Tables 3, 6 and 7: on other backbones ProS-GAN reaches more t-MAP than DHTA",
        "above",
        [
            (one, others)
            for one, others in transferred
            if one.source_model.split("-")[1] != one.target_model.split("-")[1]
        ],
    )
    benign = {
        (row.table, row.target_model): row
        for n in "367"
        for row in find(f"prosgan:{n}", "Original")
    }
    yield Statement(
        "Tables 3, 6 and 7: ProS-GAN reaches more t-MAP than benign queries on every network",
        "above",
        [(one, (benign[one.table, one.target_model],)) for one, _ in transferred],
    )
    yield Statement(
        "Tables 3, 5, 6 and 7: from every network on every other, ProS-GAN reaches more than DHTA",
        "above",
        [
            pair
            for pair in transferred + over_dhta("prosgan:5")
            if pair[0].source_model != pair[0].target_model
        ],
    )
    yield Statement(
        "Table 4: ProS-GAN takes t-MAP higher than DHTA, HashNet, 32 bits",
        "above",
        over_dhta("prosgan:4", hashing_method="HashNet", bits="32"),
        "3.12",
    )
    full, *parts = (_line("prosgan:fig4", 0, label) for label in ("ProS-GAN", "ProS-GAN1", "GAN"))
    yield Statement(
        "Figure 4 (a): ProS-GAN reaches more t-MAP than without its parts, at every code length",
        "above",
        _pairs(full.values(), *(part.values() for part in parts)),
    )
    for panel, label, what in ((1, "t-MAP", "the lower t-MAP"), (2, "Per.", "the smaller changes")):
        yield Statement(
            f"Figure 4 (b): the larger alpha, {what}",
            "below",
            _steps(_line("prosgan:fig4", panel, label).values()),
            unit="in the paper's units" if panel == 2 else "points",
        )
