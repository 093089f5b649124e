"""What a plan would take: passes through networks, images read, and the hours of both here."""

import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.reproduce import sets
from launch.reproduce.grid import GridModel
from launch.reproduce.plan import Job, PlanItem, attacks_of, is_done
from saat_jax import datasets, generative, networks
from saat_jax.pipeline.parts import Config, make_network

# Images of one measured step, and read to measure that.
_NUM_PASSED, _NUM_READ = 8, 32


class Work(NamedTuple):
    """What a network asks of an item.

    Attributes:
        flops: floating-point operations of its passes, and of a generator's.
        reads: images read and decoded.
    """

    flops: float
    reads: float


def cost(job: Job, item: PlanItem) -> float:
    """An estimate of the floating-point operations of an item."""
    return sum(_work(job, item, model).flops for model in item.models)


def _work(job: Job, item: PlanItem, model: GridModel) -> Work:
    """Of one of an item's networks.

    A gradient by the images costs two forward passes, by the parameters three.
    """
    forms = [item.form] * (item.action == "harden")
    config = job.config(model, item.seed, forms, attacks_of([item]))
    base_width = config["learned"]["prosgan"]["base_width"]
    forward = _flops(_body(config), config["data"]["image_size"])
    sizes = job.sizes(model)
    judged = sizes.query + sizes.database
    if item.action in ("train", "harden"):
        stage = config["defenses"].get(item.form)
        per_image = 2 * stage["options"]["num_steps"] + 6 if stage else 3
        stage = stage or config["pretrain"]
        times = stage["num_epochs"] / stage["evaluate_every"] + 1
        reads = sizes.train * stage["num_epochs"]
        return Work(forward * (per_image * reads + times * judged), reads + times * judged)
    total, reads = forward * (judged + sizes.train), judged + sizes.train
    for settings in config["attacks"].values():
        total += forward * sizes.query * (2 * settings.get("num_steps", 0) + 1)
        reads += sizes.query
        if settings["attack"] == "prosgan":
            stage = config["learned"][settings.get("learned", "prosgan")]
            images = sizes.train * stage["num_epochs"]
            generator = _generator_flops(base_width, config["data"]["image_size"])
            total += images * 3 * (generator + forward) + sizes.query * generator
            reads += images
    return Work(total, reads)


def _counted(net: Any, *inputs: Any) -> float:
    variables = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    found: Any = jax.jit(net.apply).lower(variables, *inputs).cost_analysis()
    return float(found["flops"])


def _body(config: Config) -> str:
    """The section "model" as JSON, without what hardly changes a pass."""
    return json.dumps(config["model"] | {"num_bits": 32, "input_norm": True, "weights": ""})


@functools.cache
def _flops(model: str, size: int) -> float:
    """Of a forward pass of one image through the network of a config's section, as JSON."""
    return _counted(
        make_network(json.loads(model)), jax.ShapeDtypeStruct((1, size, size, 3), float)
    )


@functools.cache
def _generator_flops(base_width: int, size: int) -> float:
    image = jax.ShapeDtypeStruct((1, size, size, 3), float)
    return _counted(generative.Generator(base_width), image, jax.ShapeDtypeStruct((1, 512), float))


@functools.cache
def _flops_per_second(model: str, size: int) -> float:
    """What this machine makes of gradients by the images of a network, on all its devices."""
    net = make_network(json.loads(model))
    rng = jax.random.key(0)
    variables = networks.init_variables(net, rng, image_size=size)
    encode_fn = networks.make_encode_fn(net)
    step = jax.jit(jax.grad(lambda x, v: encode_fn(v, x, 1.0).sum()))
    images = jax.random.uniform(rng, (_NUM_PASSED, size, size, 3))
    jax.block_until_ready(step(images, variables))
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < 0.5:
        jax.block_until_ready(step(images, variables))
        count += 1
    seconds = (time.perf_counter() - start) / count
    return 3 * _flops(model, size) * _NUM_PASSED / seconds * jax.device_count()


@functools.cache
def _reads_per_second(data: datasets.Dataset) -> float:
    """How fast one thread of this machine reads images of some data; infinite from memory."""
    split = data.database
    if split.images is not None:
        return float("inf")
    rows = np.linspace(0, len(split) - 1, min(_NUM_READ, len(split))).astype(int)
    start = time.perf_counter()
    datasets.load_images(split, rows, image_size=data.image_size, resize=data.resize)
    return len(rows) / (time.perf_counter() - start)


def _hours(job: Job, item: PlanItem, teraflops: float | None) -> float:
    seconds = 0.0
    for model in item.models:
        work, config = _work(job, item, model), job.config(model, item.seed)
        size = config["data"]["image_size"]
        speed = 1e12 * (teraflops or 0) or _flops_per_second(_body(config), size)
        seconds += work.flops / speed
        if job.small or job.root(model):
            seconds += work.reads / _reads_per_second(sets.load_undecoded(config))
    return seconds / 3600


def show_plan(job: Job, items: Sequence[PlanItem], *, teraflops: float | None) -> str:
    """The plan as a table: items, whether done, and hours.

    Args:
        job: what is asked for.
        items: of the plan.
        teraflops: speed of the passes; None measures that of this machine for each network.
    """
    lines, left = [], 0.0
    for item in items:
        done, hours = is_done(job, item), _hours(job, item, teraflops)
        left += 0 if done else hours
        what = ", ".join(item.attacks) or "-"
        lines.append(f"{'done' if done else '':4}  {hours:9.3g}  {item.title}  [{what}]")
    speed = f"{teraflops:g} TFLOP/s" if teraflops else "the speed measured on this machine"
    return "\n".join(
        [
            f"{len(items)} stages; hours at {speed}",
            *lines,
            f"left: {left:.3g} hours. Counted are passes through networks and the reading of "
            "images that are at hand, not compilation or start-up.",
        ]
    )
