"""Encoders from wherever they are, and the task that audits one."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from saat_jax import encoders, evaluation, options, reports, retrieval
from saat_jax.encoders import Encoder
from saat_jax.pipeline.parts import Config
from saat_jax.pipeline.runs import Run
from saat_jax.pipeline.validation import check_epsilons
from saat_jax.pipeline.workdir import store_config, stored_config


def _index(name: str) -> retrieval.MakeIndex:
    """What makes the index that a config names."""
    kind, _, address = name.partition(":")
    return retrieval.pgvector_index(address) if kind == "pgvector" else retrieval.faiss_index(kind)


def _transfer(made: evaluation.Matcher, *, encoders: Sequence[str], **given: Any) -> Any:
    """`evaluation.transfer_matches`, between the encoder and others that a config names."""
    matchers = {made.encoder.name: made}
    for text in encoders:
        source, _, radius = text.partition("=")
        point = {"radius": float(radius)} if radius else {"false_match_rate": 0.01}
        encoder = load_encoder(source)
        matchers[encoder.name] = made.by(encoder, point)
    return evaluation.transfer_matches(matchers, **given)


# By the name of the task: what makes that part of an audit, and the fields of its section in the
# config, which are its arguments; None if it has no section. "report" only writes the page.
PARTS: options.Choices[tuple[Callable[..., Any] | None, Mapping[str, Any] | None]] = (
    options.Choices(
        "task",
        {
            "audit": (evaluation.attack, None),
            "edits": (
                evaluation.edited,
                {
                    "epsilon": options.number,
                    "survive": options.anything,
                    "at_precision": options.number,
                    "names": options.anything,
                },
            ),
            "queries": (
                evaluation.queries,
                {
                    "epsilon": options.number,
                    "budget": options.number,
                    "answers": options.anything,
                    "games": options.anything,
                    "task": str,
                    "per_second": options.number,
                },
            ),
            "universal": (
                evaluation.universal,
                {
                    "epsilon": options.number,
                    "patch": options.number,
                    "task": str,
                    "num_steps": options.number,
                },
            ),
            "inserts": (
                evaluation.inserts,
                {
                    "epsilon": options.number,
                    "numbers": options.anything,
                    "k": options.number,
                    "num_held_out": options.number,
                    "num_carriers": options.number,
                    "alert_rate": options.number,
                },
            ),
            "transfer": (_transfer, {"epsilon": options.number, "encoders": options.anything}),
            "certify": (
                evaluation.certify,
                {
                    "sigma": options.number,
                    "num_draws": options.number,
                    "alpha": options.anything,
                    "epsilons": options.anything,
                },
            ),
            "report": (None, None),
        },
    )
)
_MATCHER = ("limit", "longest", "size", "groups", "seed", "batch_size")
FIELDS: dict[str, Any] = {
    "task": PARTS,
    "seed": options.number,
    "encoder": str,
    "images": str,
    "listed": str,
    "groups": str,
    "index": str,
    "limit": options.anything,
    "longest": options.anything,
    "size": options.anything,
    "point": {
        "kind": retrieval.KINDS,
        "value": options.anything,
        "false_match_rate": options.anything,
    },
    "epsilons": check_epsilons,
    "batch_size": options.number,
    **{name: fields for name, (_, fields) in PARTS.items() if fields is not None},
}


def load_encoder(source: Any, **given: Any) -> Encoder:
    """Makes an encoder of whatever turns images into codes.

    Args:
        source: a perceptual hash by name ("pdq", "phash", "dhash", "ahash"); a model of a run,
            "WORKDIR:MODEL"; a folder of `export_model`; an ONNX file; a function of a Python file,
            "FILE.py:NAME", which is called and gives any of these; a PyTorch module; a Flax
            network, with `variables` and `image_size`; or a traceable function of images, with
            `image_size`. For a function that JAX cannot trace see `encoders.from_function`.
        **given: what the constructor takes: `encoders.from_onnx`, `from_torch`, `from_network`,
            `from_jax`.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> load_encoder(lambda x: x.mean(axis=(1, 3)) - 0.5, image_size=(16, 8)).num_bits
        8
    """
    if isinstance(source, Encoder):
        return source
    if isinstance(source, str | pathlib.Path):
        return _from_text(str(source), given)
    if isinstance(source, nn.Module):
        return encoders.from_network(source, **given)
    if hasattr(source, "state_dict"):
        return encoders.from_torch(source, **given)
    if callable(source):
        return encoders.from_jax(source, **given)
    raise ValueError(
        "an encoder must be a name, a file, a model of a run, a network or a function, got "
        f"{type(source).__name__}"
    )


def _from_text(source: str, given: Mapping[str, Any]) -> Encoder:
    place, _, name = source.rpartition(":")
    if source in encoders.PERCEPTUAL_HASHES:
        return encoders.PERCEPTUAL_HASHES[source](**given)
    if source.endswith(".onnx"):
        return encoders.from_onnx(source, **given)
    if place.endswith(".py"):
        return load_encoder(_function_of(pathlib.Path(place), name)(), **given)
    if place and (pathlib.Path(place) / "config.json").is_file():
        return _of_run(pathlib.Path(place), name)
    if pathlib.Path(source).is_dir():
        return encoders.from_folder(pathlib.Path(source))
    raise ValueError(
        f"encoder {options.shortened(source)!r} is none of {[*encoders.PERCEPTUAL_HASHES]}, and no "
        "FILE.onnx, FILE.py:FUNCTION, WORKDIR:MODEL or FOLDER of a model that is there"
    )


def _function_of(path: pathlib.Path, name: str) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} to take the function {name!r} from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r}; it gives the encoder, or its network")
    return function


def _of_run(workdir: pathlib.Path, name: str) -> Encoder:
    """A model of a run, on images of the run's size."""
    config = stored_config(workdir)
    with options.naming(str(workdir / "config.json")):
        run = Run(config, workdir, guest=True)
    model = run.load_model(name)
    size = run.data.image_size
    return encoders.from_encode_fn(
        model.encode_fn, model.variables, image_size=(size, size), name=f"{workdir.name}:{name}"
    )


def audit(config: Config, workdir: pathlib.Path) -> None:
    """Makes a part of the audit of the config's encoder, writes the page, and prints the tables.

    Raises:
        ValueError: if a field of the config is wrong, or what it names is not there.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else config
    options.check_tree("", config, FIELDS, whole="the config")
    options.check_numbers(seed=config["seed"], batch_size=config["batch_size"])
    task = config["task"]
    part, fields = PARTS[task]
    if part is not None:
        point = config["point"]
        rate = point["false_match_rate"]
        given = {"false_match_rate": rate, "kind": point["kind"]}
        if rate is None:
            given = retrieval.OperatingPoint.create(**{point["kind"]: point["value"]}).asdict()
        encoder = load_encoder(config["encoder"])
        made = evaluation.Matcher(
            encoder,
            config["images"],
            given,
            config["listed"] or None,
            indexes={index: _index(index)} if (index := config["index"]) else None,
            **{name: config[name] for name in _MATCHER},
        )
        store_config(workdir, config)
        print(f"running on {jax.devices()[0].device_kind}: {task} {encoder.name}", flush=True)
        settings = {"epsilons": config["epsilons"]} if fields is None else config[task]
        if task == "queries":
            settings = {**settings, "index": index}
        part(made, folder=workdir, progress=True, **settings)
    reports.show_audit(workdir)
