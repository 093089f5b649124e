"""What leaves a run: model folders that go anywhere, and the cards of what was judged."""

import pathlib
from importlib import metadata
from typing import Any

import jax
import numpy as np

from saat_jax import encoders, files, options, reports, training
from saat_jax.pipeline.parts import Config
from saat_jax.pipeline.runs import Run
from saat_jax.pipeline.workdir import check_workdir, stored_config

_CURE = "delete it and audit again"
# What the launcher leaves in a workdir, a command a line.
COMMANDS = "commands.txt"
_OWN_COPY = ("weights", "remat", "head")


def export_model(workdir: str, model: str, folder: str, *, command: str = "") -> pathlib.Path:
    """Writes a model of a run as a folder that `load_encoder` reads, in Hugging Face's layout.

    It has config.json, model.safetensors, README.md (the model card) and, for each ball that the
    model was attacked in, a card: card.json, of several card-NUMBER.json. It is whole or absent.

    Args:
        workdir: folder of the run, whose data must be there.
        model: such as "pretrained" or "hardened".
        folder: to be made.
        command: what made the run; by default what the run's folder says.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written.
        ValueError: if there is no such run or model, or something is at `folder` already.
    """
    place, config = check_workdir(workdir), stored_config(workdir)
    with options.naming(str(place / "config.json")):
        run = Run(config, place, guest=True)
    trained = run.load_model(model)
    network = {k: v for k, v in run.config["model"].items() if k not in _OWN_COPY}
    with files.new_folder(pathlib.Path(folder).absolute()) as temporary:
        told = encoders.write_model(
            temporary,
            network,
            jax.tree.map(np.asarray, trained.variables),
            name=f"{place.name}:{model}",
            image_size=run.data.image_size,
            resize=run.data.resize,
            code_version=metadata.version("saat-jax"),
            head=run.config["model"].get("head") or "" if model == reports.BASE_MODEL else "",
        )
        records = [r for r in reports.load_records(place) if r["model"] == model]
        cards = _cards(place, records, {model: told["weights_sha256"]}, command, None, model)
        for number, card in enumerate(cards):
            name = f"card-{number}.json" if len(cards) > 1 else "card.json"
            reports.write_card(card, temporary / name)
        text = reports.model_readme(told, cards)
        files.write_bytes(temporary / "README.md", text.encode())
    return pathlib.Path(folder)


def make_cards(
    workdir: str, *, command: str = "", dataset: str = "", page: str | None = None
) -> list[reports.Card]:
    """Makes the cards of a run, one for each judged model and ball, or those of an audit.

    Args:
        workdir: folder of the run or the audit. The data of a run need not be there.
        command: what made it; by default what its folder says.
        dataset: name of an audit's images; by default that of their folder.
        page: address of its page, relative to where the board will be.

    Raises:
        ValueError: if it holds nothing that was judged, a file is damaged, or nobody says by what
            command it was made.
    """
    place, path = check_workdir(workdir), pathlib.Path(workdir) / "audit.json"
    if path.is_file():
        record = files.read_json(path, cure=_CURE, fields={"encoder": dict, "tasks": dict})
        return reports.cards_of_audit(
            record,
            dataset=dataset or _images_of(place),
            command=command or _command_of(place),
            page=page,
        )
    records = reports.load_records(place)
    weights = {model: _digest(place, model) for model in {r["model"] for r in records}}
    known = {model: digest for model, digest in weights.items() if digest}
    return _cards(place, records, known, command, page)


def _cards(
    place: pathlib.Path,
    records: list[Any],
    weights: dict[str, str],
    command: str,
    page: str | None,
    model: str = "",
) -> list[reports.Card]:
    """Of a model that is exported there may be none: it need not have been judged."""
    if model and not any(r.get("settings") for r in records):
        return []
    return reports.cards_of_run(
        records,
        title=place.name,
        command=command or _command_of(place),
        weights=weights,
        page=page,
    )


def _command_of(workdir: pathlib.Path) -> str:
    path = workdir / COMMANDS
    if lines := files.whole_lines(path):
        return "\n".join(lines)
    raise ValueError(
        f"{path} is missing, so that nobody knows what made the run; say it: "
        "--command 'saat-jax --config ...'"
    )


def _images_of(workdir: pathlib.Path) -> str:
    """The name of the folder of an audit's images."""
    config: Config = stored_config(workdir)
    folder = pathlib.Path(config.get("images") or "photos of scikit-image")
    return folder.absolute().name


def _digest(workdir: pathlib.Path, model: str) -> str | None:
    """Digest of the weights that a run judges by; None if they are no longer there."""
    folder = workdir / "models" / model
    if not (folder / "checkpoints").is_dir() or not (workdir / "config.json").is_file():
        return None
    best = stored_config(workdir).get("evaluation", {}).get("checkpoint") == "best"
    with training.open_checkpoints(folder) as saved:
        found = saved.restore(best=best)
    if found is None:
        return None
    return encoders.weights_digest(training.variables_of(found.state))
