"""What has to be done for some tables: items, whether they are done, and what they cost."""

import dataclasses
import functools
import json
import pathlib
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from configs import reproduce as cells
from launch.reproduce.grid import GridModel, Measurement
from saat_jax import files, generative, networks, training
from saat_jax.pipeline.parts import Config, decisive

# Queries, database and training images of both papers, for the estimate of the cost.
_SIZES = {
    ("saat", "flickr25k"): (1000, 24000, 5000),
    ("saat", "nuswide"): (2100, 193734, 10500),
    ("saat", "coco"): (5000, 118287, 10000),
    ("prosgan", "flickr25k"): (1700, 23300, 5000),
    ("prosgan", "nuswide"): (2100, 193734, 10500),
    ("prosgan", "coco"): (5000, 117218, 10000),
}
# At small scale one set stands for all three.
_STAND_IN = "small"


@dataclasses.dataclass(frozen=True)
class PlanItem:
    """A piece of work that others may wait for.

    Attributes:
        run_name: name of the run's folder.
        action: "train", "harden", "judge" or "transfer".
        form: "pretrained" or the name of a defence; empty for a transfer.
        attacks: the records wanted.
        models: the networks concerned, one but for a transfer.
        seed: of the run.
    """

    run_name: str
    action: str
    form: str
    attacks: tuple[str, ...]
    models: tuple[GridModel, ...]
    seed: int

    @property
    def title(self) -> str:
        """How the item is named to people."""
        return " ".join(word for word in (self.run_name, self.action, self.form) if word)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a command asks for: measurements, where, and from which data.

    Attributes:
        workdir: folder of the site; the runs are in its folder runs.
        small: whether on small stand-ins.
        roots: folder of each data set's lists.
        weights: folder of pretrained weights; None for none.
        seeds: one run of everything for each.
        settings: further settings of every config, by dotted name.
    """

    workdir: pathlib.Path
    small: bool
    roots: dict[str, str]
    weights: pathlib.Path | None
    seeds: tuple[int, ...]
    settings: dict[str, Any]

    def folder(self, run: str) -> pathlib.Path:
        """Where a run is."""
        return self.workdir / "runs" / run

    def run_name(self, model: GridModel, seed: int) -> str:
        """The folder's name of a network's run."""
        return f"{self.stand_in(model).name}-seed{seed}"

    def stand_in(self, model: GridModel) -> GridModel:
        """The network that is really trained."""
        return dataclasses.replace(model, dataset=_STAND_IN) if self.small else model

    def transfer_name(self, model: GridModel, seed: int) -> str:
        """The folder's name of the transfer between the networks of a data set."""
        model = self.stand_in(model)
        return f"transfer-{model.paper}-{model.dataset}-seed{seed}"

    def config(
        self, model: GridModel, seed: int, forms: Iterable[str] = (), attacks: Iterable[str] = ()
    ) -> Config:
        """The config of a network, with these of its forms and attacks.

        Raises:
            ValueError: if it has no such setting as one of the command.
        """
        config = cells.make_config(**dataclasses.asdict(model), small=self.small)
        config.seed = seed
        root = self.roots.get("small" if self.small else model.dataset)
        if self.small and root:
            config.data = small_data(root)
        elif not self.small:
            config.data.root = root or ""
            if self.weights:
                config.model.weights = str(find_weights(self.weights, model.network))
        config.lock()
        for name, value in self.settings.items():
            try:
                config.update_from_flattened_dict({name: value})
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"--set {name}={value!r} does not fit the config of {model.name}: "
                    f"{error.args[0]}"
                ) from error
        plain: Config = config.to_dict()
        plain["defenses"] = {name: plain["defenses"][name] for name in forms}
        plain["attacks"] = {name: plain["attacks"][name] for name in attacks}
        return plain


def small_data(root: str) -> Config:
    """The data section of a small set of one's own: list files, 64 pixels."""
    return dict(
        source="lists",
        root=root,
        image_size=64,
        resize=None,
        remap=(),
        skip_corrupt=False,
        decode=True,
    )


def find_weights(folder: pathlib.Path, network: str) -> pathlib.Path:
    """The file of a network's pretrained weights.

    Raises:
        ValueError: if the folder has none.
    """
    paths = [folder / f"{network}{suffix}" for suffix in (".safetensors", ".npz", ".pth")]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(
        f"no weights of {network} in {folder}: expected {' or '.join(p.name for p in paths)}; "
        "the head of configs/train_hash.py says how torchvision writes them"
    )


def plan(job: Job, wanted: Sequence[Measurement]) -> list[PlanItem]:
    """The items that make some measurements, each once, in an order in which they can run."""
    items: list[PlanItem] = []
    for seed in job.seeds:
        forms: dict[str, dict[str, dict[str, None]]] = {}
        models: dict[str, GridModel] = {}
        transfers: dict[str, tuple[dict[GridModel, None], dict[str, None]]] = {}
        for point in wanted:
            for model in filter(None, (point.model, point.target)):
                name = job.run_name(model, seed)
                models.setdefault(name, job.stand_in(model))
                forms.setdefault(name, {"pretrained": {}})
            if point.target is None:
                own = forms[job.run_name(point.model, seed)].setdefault(point.form, {})
                own[point.attack] = None
            else:
                name = job.transfer_name(point.model, seed)
                members, attacks = transfers.setdefault(name, ({}, {}))
                members |= dict.fromkeys((job.stand_in(point.model), job.stand_in(point.target)))
                if point.attack != "benign":
                    attacks[point.attack] = None
        for run, found in forms.items():
            alone = (models[run],)
            items.append(PlanItem(run, "train", "pretrained", (), alone, seed))
            items += [
                PlanItem(run, "harden", form, (), alone, seed)
                for form in found
                if form != "pretrained"
            ]
            items += [
                PlanItem(run, "judge", form, tuple(attacks), alone, seed)
                for form, attacks in found.items()
                if attacks
            ]
        items += [
            PlanItem(run, "transfer", "", tuple(attacks), tuple(members), seed)
            for run, (members, attacks) in transfers.items()
        ]
    return items


def attacks_of(items: Iterable[PlanItem]) -> list[str]:
    """The attacks of some items, each once."""
    names = dict.fromkeys(name for item in items for name in item.attacks)
    return [name for name in names if name != "benign"]


def is_done(job: Job, item: PlanItem) -> bool:
    """Whether an item has left what it is for, by the note that `mark_done` made.

    Raises:
        ValueError: if it was done with other settings, naming the first.
    """
    folder, note = job.folder(item.run_name), _note(job, item)
    if not note.is_file():
        return False
    found, wanted = files.read_json(note), _settings(job, item)
    # Other tables want other attacks, and other models of a transfer.
    shared = _shared(wanted, found)
    training.check_identity(_shared(found, shared), shared, folder)
    if item.action in ("train", "harden"):
        left = [folder / "models" / item.form / "checkpoints"]
    else:
        records = folder / ("transfer" if item.action == "transfer" else f"records/{item.form}")
        left = [records / f"{name}.json" for name in attacks_of([item])]
    return shared == wanted and all(path.exists() for path in left)


def mark_done(job: Job, item: PlanItem) -> None:
    """Notes that an item is done, and with which settings."""
    files.write_json(_note(job, item), _settings(job, item))


def _note(job: Job, item: PlanItem) -> pathlib.Path:
    return job.folder(item.run_name) / "done" / f"{item.action}-{item.form}.json"


def _settings(job: Job, item: PlanItem) -> Config:
    """What decides the results of an item, by network; where files lie does not."""
    sections = ["model", "objective", "data", "pretrain", "seed", "precision"]
    forms = [item.form] * (item.form not in ("", "pretrained"))
    sections += ["defenses"] * bool(forms)
    sections += ["attacks", "learned", "evaluation"] * bool(item.attacks)
    found = {}
    for model in item.models:
        config = job.config(model, item.seed, forms, attacks_of([item]))
        found[job.run_name(model, item.seed)] = _decisive({name: config[name] for name in sections})
    settings: Config = json.loads(json.dumps(found))
    return settings


def _decisive(tree: Config) -> Config:
    return {
        name: _decisive(value) if isinstance(value, dict) else value
        for name, value in decisive(tree).items()
        if name not in ("root", "weights", "remat")
    }


def _shared(tree: Config, other: Config) -> Config:
    """What of a tree is in the other one too, whatever its value there."""
    return {
        name: _shared(value, other[name])
        if isinstance(value, dict) and isinstance(other[name], dict)
        else value
        for name, value in tree.items()
        if name in other
    }


def cost(job: Job, item: PlanItem) -> float:
    """An estimate of the floating-point operations of an item: those of its network passes.

    A gradient by the images costs two forward passes, by the parameters three.
    """
    total = 0.0
    for model in item.models:
        config = job.config(model, item.seed, [item.form] * (item.action == "harden"), ())
        forward, generator = _flops(
            config["model"]["name"],
            tuple(config["model"].get("widths", ())),
            config["data"]["image_size"],
            config["learned"]["prosgan"]["base_width"],
        )
        queries, database, train = _sizes(model, config)
        if item.action == "train":
            section = config["pretrain"]
            judged = section["num_epochs"] / section["evaluate_every"] + 1
            total += forward * (3 * train * section["num_epochs"] + judged * (database + queries))
            continue
        if item.action == "harden":
            section = config["defenses"][item.form]
            steps = 2 * section["options"]["num_steps"] + 6
            total += forward * steps * train * section["num_epochs"]
            continue
        suite = job.config(model, item.seed, attacks=attacks_of([item]))["attacks"]
        total += forward * (queries + database + train)
        for settings in suite.values():
            total += forward * queries * 2 * settings.get("num_steps", 0)
            if settings["attack"] == "prosgan":
                section = config["learned"][settings.get("learned", "prosgan")]
                images = train * section["num_epochs"]
                total += images * 3 * (generator + forward) + queries * generator
    return total


def _sizes(model: GridModel, config: Config) -> tuple[int, int, int]:
    """Queries, database and training images."""
    if (model.paper, model.dataset) in _SIZES:
        return _SIZES[model.paper, model.dataset]
    data = config["data"]
    if data["source"] == "digits":
        return data["num_query"], data["num_database"], data["num_train"]
    counts = []
    for split in ("test", "database", "train"):
        # Of either format, see saat_jax/datasets/lists.py.
        paths = [pathlib.Path(data["root"]) / f"{split}{end}.txt" for end in ("_label", "")]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise ValueError(
                f"no lists in {data['root']!r}: expected {paths[0].name} with {split}_img.txt, or "
                f"{paths[1].name}; name their folder by --root"
            )
        with found[0].open("rb") as file:
            counts.append(sum(1 for _ in file))
    return counts[0], counts[1], counts[2]


@functools.cache
def _flops(
    network: str, widths: tuple[int, ...], size: int, base_width: int
) -> tuple[float, float]:
    """Operations of a forward pass of one image: of the network, and of the generator."""
    options = {"widths": widths} if widths else {}
    model = networks.create_network(network, num_bits=32, **options)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    key = jax.random.key(0)
    generator = generative.Generator(base_width)
    semantics = jax.ShapeDtypeStruct((1, 512), "float32")
    found: list[float] = []
    for net, inputs in ((model, (image,)), (generator, (image, semantics))):
        variables = jax.eval_shape(net.init, key, *inputs)
        counted: Any = jax.jit(net.apply).lower(variables, *inputs).cost_analysis()
        found.append(counted["flops"])
    return found[0], found[1]


def show_plan(job: Job, items: Sequence[PlanItem], *, teraflops: float) -> str:
    """The plan as a table: items, whether done, and hours at a rate."""
    lines, left = [], 0.0
    for item in items:
        done = is_done(job, item)
        hours = cost(job, item) / (teraflops * 1e12) / 3600
        left += 0 if done else hours
        what = ", ".join(item.attacks) or "-"
        lines.append(f"{'done' if done else '':4}  {hours:9.3g}  {item.title}  [{what}]")
    return "\n".join(
        [
            f"{len(items)} stages; hours at {teraflops:g} TFLOP/s",
            *lines,
            f"left: {left:.3g} hours. Counted are passes through networks, not input or start-up.",
        ]
    )


def commands(items: Sequence[PlanItem], argv: Sequence[str]) -> str:
    """One command per run, those that others wait for first."""
    passed = [word for word in argv if word not in ("--commands", "--dry-run")]
    base = shlex.join(["saat-jax", "reproduce", *passed])
    runs = dict.fromkeys(item.run_name for item in items if item.action != "transfer")
    transfers = dict.fromkeys(item.run_name for item in items if item.action == "transfer")
    lines = ["# 1. side by side", *(f"{base} --only {run}" for run in runs)]
    if transfers:
        lines += ["# 2. after all of 1, side by side", *(f"{base} --only {r}" for r in transfers)]
    return "\n".join([*lines, "# at the end", f"{base} --collect"])
