"""What has to be done for some tables: items, and whether they are done."""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from configs import reproduce as cells
from launch.reproduce import sets
from launch.reproduce.grid import GridModel, Measurement
from saat_jax import files, options, training
from saat_jax.pipeline.parts import Config, decisive

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
        roots: folder of the lists, by set, or by paper and set as "saat:coco".
        weights: folder of pretrained weights; None for none.
        any_lists: whether lists of other sizes than the papers' will do.
        seeds: one run of everything for each.
        settings: further settings of every config, by dotted name.
    """

    workdir: pathlib.Path
    small: bool
    roots: dict[str, str]
    weights: pathlib.Path | None
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    any_lists: bool = False

    def root(self, model: GridModel) -> str:
        """The folder of a network's lists; empty if none is named."""
        if self.small:
            return self.roots.get(_STAND_IN, "")
        own = self.roots.get(f"{model.paper}:{model.dataset}")
        return own or self.roots.get(model.dataset, "")

    def sizes(self, model: GridModel) -> sets.Sizes:
        """How large a network's data are; without lists of them, as the paper has it.

        Raises:
            ValueError: if the lists are not sound, or are not those of the paper's set.
        """
        if not self.small and not self.root(model):
            return sets.PUBLISHED[model.paper, model.dataset]
        found = sets.sizes_of(self.config(model, self.seeds[0]))
        other = "" if self.small else sets.difference(model.paper, model.dataset, found)
        if other and not self.any_lists:
            raise ValueError(
                f"{self.root(model)} is not {model.dataset} as {model.paper} has it: it has "
                f"{other}; name the right folder by --root {model.paper}:{model.dataset}=FOLDER, "
                "or give --any-lists, and every page says so"
            )
        return found

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
        names, swept = {*forms, *attacks}, cells.swept()
        for name in self.settings:
            if varied := names.intersection(swept.get(name, ())):
                raise ValueError(
                    f"--set {name} is what a table or figure varies, by {', '.join(sorted(varied))}"
                    "; leave it out, or that table"
                )
        root, places = self.root(model), {}
        if not self.small:
            places["data.root"] = root
            if self.weights:
                places["model.weights"] = str(find_weights(self.weights, model.network))
        with options.naming(f"--set, {model.name}"):
            config = cells.make_config(
                **dataclasses.asdict(model),
                small=self.small,
                data=small_data(root) if self.small and root else None,
                settings=places | self.settings,
            )
        config.seed = seed
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
