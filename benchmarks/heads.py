"""Hash layers in closed form on a network's features of real images: a table of MAP.

    python -m benchmarks.heads --weights vit.npz --root FOLDER --image-size 112

FOLDER holds lists as `data.source=lists` takes them. Heads are fitted on the training images;
features of all images are made once. "float" ranks by the cosine of the centred features, without
hashing. Ranks are of the whole database, ties averaged.
"""

import argparse
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from saat_jax import datasets, networks, retrieval


def features_of(
    data: datasets.Dataset, split: datasets.Split, features_fn: Any, variables: Any, batch: int
) -> np.ndarray:
    """Features of a split, `[rows, width]`."""
    found = []
    batches = datasets.eval_batches(
        split, batch_size=batch, image_size=data.image_size, resize=data.resize
    )
    for images in tqdm(batches, split.name, -(-len(split) // batch)):
        features = np.asarray(features_fn(variables, images["image"]))
        found.append(features[images["mask"] > 0])
    return np.concatenate(found)


def cosine_map(query: np.ndarray, database: np.ndarray, relevant: np.ndarray) -> float:
    """MAP of the ranks by cosine; queries without relevant images score 0."""
    query, database = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, database))
    order = np.argsort(-query @ database.T, axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return float(np.mean(np.sum(precision * hits, axis=1) / np.maximum(hits.sum(1), 1)))


def main(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    size = arguments.image_size
    data = datasets.load_dataset(source="lists", root=arguments.root, image_size=size, seed=0)
    net = networks.create_network(arguments.network, num_bits=1)
    variables = networks.init_variables(net, jax.random.key(0), image_size=size)
    variables, report = networks.load_torch_weights(variables, arguments.weights)
    print(report)
    features_fn = jax.jit(networks.make_features_fn(net))
    splits = {"query": data.query, "database": data.database, "train": data.train}
    features = {
        name: features_of(data, split, features_fn, variables, arguments.batch)
        for name, split in splits.items()
    }
    if arguments.output:
        np.savez(arguments.output, **features)  # type: ignore[arg-type]
    labels = data.query.labels, data.database.labels
    relevant = labels[0] @ labels[1].T > 0
    mean = features["train"].mean(0)
    floats = cosine_map(features["query"] - mean, features["database"] - mean, relevant)
    print(f"float: MAP {100 * floats:.1f} %; share of relevant pairs {100 * relevant.mean():.1f} %")
    print("\n| head | " + " | ".join(f"{bits} bits" for bits in arguments.bits) + " |")
    print("|---|" + "---:|" * len(arguments.bits))
    for head in networks.HEADS:
        cells = []
        for bits in arguments.bits:
            kernel, bias = networks.HEADS[head](features["train"], num_bits=bits, seed=0)
            query, database = (
                np.where(features[name] @ kernel + bias >= 0, 1, -1).astype(np.float32)
                for name in ("query", "database")
            )
            cells.append(f"{100 * retrieval.map_at_k(query, database, *labels, k=None):.1f}")
        print(f"| {head} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="vit_s14_dinov2")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--output", default="")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64, 128])
    main(parser.parse_args())
