"""The worst case: a suite's members, what they find together, and the flags of ill models."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saat_jax import datasets, evaluation
from saat_jax.evaluation import flags, judging, worst_case

pytestmark = pytest.mark.usefixtures("quick_compilation")
EPSILON, SIDE, NUM_BITS, NUM_CLASSES = 0.02, 8, 16, 4
PROTOCOL = evaluation.Protocol(k=None, ties="average", normalizer="hits", seed=0)
RNG = np.random.default_rng(0)
CENTERS = RNG.random((NUM_CLASSES, SIDE, SIDE, 3))
PROJECTION = RNG.normal(size=(SIDE * SIDE * 3, NUM_BITS)).astype(np.float32) / 4


def _split(name, size, seed):
    rng = np.random.default_rng(seed)
    classes = np.arange(size) % NUM_CLASSES
    images = 0.5 + 0.35 * (CENTERS[classes] - 0.5) + 0.08 * rng.normal(size=(size, SIDE, SIDE, 3))
    pixels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return datasets.Split(name, np.eye(NUM_CLASSES, dtype=np.float32)[classes], images=pixels)


DATA = datasets.Dataset(
    "blobs", _split("train", 40, 1), _split("query", 24, 2), _split("database", 80, 3),
    tuple("abcd"), SIDE, None,
)  # fmt: skip
TARGETS = np.roll(DATA.query.labels, 1, axis=1)


def features(images):
    """What a healthy encoder takes tanh of."""
    return (images.reshape(len(images), -1) - 0.5) @ PROJECTION


def healthy(variables, images, alpha):
    return jnp.tanh(alpha * features(images))


def scaled(variables, images, alpha):
    return jnp.tanh(alpha * 1e4 * features(images))


def saturated(variables, images, alpha):
    return jnp.tanh(50 * features(images))


def signed(variables, images, alpha):
    return jnp.sign(features(images)) * 0.99


def rounded(variables, images, alpha):
    return jnp.round(8 * jnp.tanh(features(images))) / 8.0001


def detached(variables, images, alpha):
    return jax.lax.stop_gradient(healthy(variables, images, alpha))


def behind_jpeg(variables, images, alpha):
    """Behind what rounds as JPEG does: the coefficients of blocks of 8 x 8."""
    basis = np.cos(np.pi * np.outer(np.arange(8), np.arange(8) + 0.5) / 8) / 2
    basis[0] /= np.sqrt(2)
    coefficients = jnp.einsum("ui,vj,nijc->nuvc", basis, basis, images)
    kept = jnp.round(12 * coefficients) / 12
    return healthy(variables, jnp.einsum("ui,vj,nuvc->nijc", basis, basis, kept), alpha)


def noisy(variables, images, alpha):
    """Draws anew with every call."""
    draws = np.random.default_rng()

    def draw(like):
        return draws.normal(size=like.shape).astype(np.float32)

    like = jax.ShapeDtypeStruct((len(images), NUM_BITS), jnp.float32)
    noise = jax.pure_callback(draw, like, jax.lax.stop_gradient(features(images)))
    return jnp.tanh(alpha * (features(images) + jax.lax.stop_gradient(noise)))


def judge(encode_fn, folder, suite=None, **changes):
    """The record of the full suite, or of another."""
    suite = suite or evaluation.standard_suite(epsilon=EPSILON)
    options = {"protocol": PROTOCOL, "identity": {}, "batch_size": 24, "num_examples": 2}
    records = evaluation.evaluate(
        encode_fn, {}, DATA, {"worst": suite}, TARGETS, folder=folder, **options | changes
    )
    return records["worst"] | {"benign": records["benign"]}


def names_of(record):
    return {flag["flag"] for flag in record["flags"]} | {
        flag["flag"] for flag in record["benign"]["flags"]
    }


@pytest.fixture(scope="module")
def healthy_record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy") / "model"
    return judge(healthy, folder, save_images=True), folder


def test_a_healthy_model_raises_no_flag(healthy_record):
    record, _ = healthy_record
    assert record["benign"]["metrics"]["map"] > 0.75
    assert record["metrics"]["map"] < record["benign"]["metrics"]["map"] - 0.2
    assert names_of(record) == set()


@pytest.mark.parametrize(
    ("encode_fn", "expected"),
    [
        (saturated, {"saturated"}),
        (signed, {"no_gradient", "gradient_free_wins", "unbounded_fails"}),
        (rounded, {"no_gradient", "gradient_free_wins"}),
        (detached, {"no_gradient", "gradient_free_wins"}),
        (behind_jpeg, {"no_gradient", "gradient_free_wins"}),
        (noisy, {"random_output", "silent_success"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ill_models_raise_their_flags(encode_fn, expected, tmp_path):
    # Of the full suite the member without a gradient, which the cheap one lacks.
    square = evaluation.standard_suite(epsilon=EPSILON).members["square"]
    suite = evaluation.standard_suite(epsilon=EPSILON, preset="cheap", extra={"square": square})
    record = judge(encode_fn, tmp_path / "model", suite)
    assert expected <= names_of(record)
    for flag in record["flags"]:
        assert flag["meaning"] and flag["advice"] and flag["value"] > flag["limit"]


def test_images_of_another_model_tell_of_a_masked_gradient(tmp_path):
    other = evaluation.surrogate(
        healthy, {}, DATA, TARGETS, identity={"it": "is healthy"}, protocol=PROTOCOL, batch_size=24
    )
    member = {"attack": "surrogate", "num_steps": 100}
    suite = evaluation.standard_suite(epsilon=EPSILON, preset="cheap").joined_by("other", **member)
    record = judge(detached, tmp_path / "model", suite, learned={"surrogate": other})
    assert "transfer_wins" in names_of(record)
    assert record["members"]["other"]["worst_on"] > 0.9
    assert record["metrics"]["map"] < record["benign"]["metrics"]["map"] - 0.2
    assert suite.joined_by("flips", **member).members["flips"].attack == "auto_pgd"
    changed = judge(
        detached,
        tmp_path / "model",
        suite,
        learned={"surrogate": other._replace(identity={"it": "is another"})},
    )
    assert changed["identity"] != record["identity"]


def test_a_search_on_a_sample_of_the_codes_does_not_speak_of_silent_success(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation.methods, "_MAX_CODES", 5)
    record = judge(healthy, tmp_path / "model")
    assert not names_of(record) & {"silent_success", "not_monotone"}


def test_the_scale_of_the_output_changes_nothing(healthy_record, tmp_path):
    record = judge(scaled, tmp_path / "model")
    assert abs(record["metrics"]["map"] - healthy_record[0]["metrics"]["map"]) < 0.005
    # Said all the same: attacks on tanh itself would be fooled.
    assert names_of(record) == {"saturated"}


def test_a_suite_is_never_weaker_than_a_member(healthy_record):
    record, folder = healthy_record
    scores = [member["score"] for member in record["members"].values()]
    assert record["metrics"]["map"] <= min(scores) + 1e-9
    assert record["metrics"]["map"] == record["metrics"]["map_8bit"]
    assert sum(member["worst_on"] for member in record["members"].values()) == pytest.approx(1)
    forward = sum(member["forward_passes"] for member in record["members"].values())
    assert record["forward_passes"] == forward
    low, high = record["interval"]
    assert low < record["metrics"]["map"] < high
    with np.load(folder / "worst.npz") as arrays:
        each = arrays["average_precision"]
        assert each.mean() == pytest.approx(record["metrics"]["map"])
        assert arrays["query_codes"].shape == (24, NUM_BITS // 8)
        assert arrays["nearest_rows"].shape == arrays["nearest_distances"].shape == (24, 10)
        assert arrays["member"].max() < len(record["members"])
    # What the saved images score is what the record says.
    images = np.stack(
        [np.asarray(Image.open(folder / "worst" / f"{row:06d}.png")) for row in range(24)]
    )
    queries = DATA.query.images
    assert np.abs(images.astype(int) - queries.astype(int)).max() <= 255 * EPSILON
    codes = np.where(np.asarray(features(images / np.float32(255))) >= 0, 1, -1)
    database = np.where(np.asarray(features(DATA.database.images / np.float32(255))) >= 0, 1, -1)
    found = PROTOCOL.average_precision(codes, database, DATA.query.labels, DATA.database.labels)
    np.testing.assert_allclose(found, each, atol=1e-9)


def test_targeted_the_highest_counts(tmp_path):
    suite = evaluation.standard_suite(epsilon=EPSILON, targeted=True, preset="cheap")
    record = judge(healthy, tmp_path / "model", suite)
    scores = [member["score"] for member in record["members"].values()]
    assert record["metrics"]["t_map"] >= max(scores) - 1e-9
    assert record["metrics"]["theory_t_map"] >= record["metrics"]["t_map"] - 1e-6


@dataclasses.dataclass
class Stop(Exception):
    """Pressed at some member."""


def test_a_suite_goes_on_after_the_last_member_that_is_done(tmp_path, monkeypatch):
    suite = evaluation.standard_suite(epsilon=EPSILON, preset="cheap")
    whole = judge(healthy, tmp_path / "whole" / "model", suite)
    attack, begun = judging.JudgedModel.attack, []

    def stop(self, settings, *arguments, **options):
        begun.append(options["title"])
        if len(begun) == 3:
            raise Stop
        return attack(self, settings, *arguments, **options)

    monkeypatch.setattr(judging.JudgedModel, "attack", stop)
    with pytest.raises(Stop):
        judge(healthy, tmp_path / "model", suite)
    monkeypatch.undo()
    made = []
    craft = evaluation.crafting._BatchAttack.__call__

    def count(self, batch):
        made.append(1)
        return craft(self, batch)

    monkeypatch.setattr(evaluation.crafting._BatchAttack, "__call__", count)
    record = judge(healthy, tmp_path / "model", suite)
    # One batch of each of the two members that were left.
    assert len(made) == len(suite.members) - 2
    assert record["metrics"] == whole["metrics"]


def test_images_crafted_elsewhere_join_and_are_held_to_the_ball(healthy_record, tmp_path):
    record, folder = healthy_record
    given = evaluation.AttackSettings.create(
        attack="images", targeted=False, epsilon=EPSILON, folder=str(folder / "worst")
    )
    suite = evaluation.standard_suite(epsilon=EPSILON, preset="cheap", extra={"theirs": given})
    joined = judge(healthy, tmp_path / "model", suite)
    assert joined["members"]["theirs"]["score"] == pytest.approx(record["metrics"]["map"])
    assert joined["metrics"]["map"] <= record["metrics"]["map"] + 1e-9
    # Of a model whose gradient is hidden they do better than the suite itself.
    hidden = judge(detached, tmp_path / "hidden", suite)
    assert "transfer_wins" in names_of(hidden)
    smaller = dataclasses.replace(given, epsilon=EPSILON / 4)
    with pytest.raises(ArithmeticError, match="the attack left the ball"):
        judge(healthy, tmp_path / "smaller", smaller)
    (tmp_path / "few").mkdir()
    none = dataclasses.replace(given, options={"folder": str(tmp_path / "few")})
    with pytest.raises(ValueError, match="few lacks the images of 24 of 24 queries"):
        judge(healthy, tmp_path / "none", none)


def test_a_larger_ball_does_no_less(tmp_path):
    scores = [
        judge(
            healthy,
            tmp_path / str(epsilon),
            evaluation.standard_suite(epsilon=epsilon, preset="cheap"),
        )["metrics"]["map"]
        for epsilon in (0.008, 0.06)
    ]
    assert scores[1] < scores[0] - 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"version": 2}, "unknown version 2 of the suite"),
        ({"preset": "best"}, r"unknown preset 'best'; expected one of \['cheap', 'full'\]"),
        ({"epsilon": 8}, "epsilon must be a number from 0 to 1, got 8: 8 grey levels are 8 / 255"),
        ({"epsilon": None}, "epsilon of attack 'standard' must be a number"),
        ({"steps": 3}, "attack 'standard' has no option 'steps'"),
        ({"extra": {"mine": {"attack": "cw"}}}, "extra.mine: unknown attack 'cw'"),
        ({"extra": {"votes": {"attack": "noise"}}}, "'votes' must have a name of its own"),
    ],
)
def test_a_suite_refuses_what_it_does_not_have(given, message):
    with pytest.raises(ValueError, match=message):
        evaluation.create_attack(
            **{"attack": "standard", "targeted": False, "epsilon": 0.1} | given
        )


def test_settings_of_a_suite_are_json_and_name_every_member():
    mine = {"attack": "mainstay", "step_size": 0.01, "num_steps": 2}
    suite = evaluation.create_attack(
        attack="standard", targeted=True, epsilon=0.1, preset="cheap", extra={"mine": mine}
    )
    settings = json.loads(json.dumps(suite.asdict()))
    assert settings["members"]["mine"]["num_steps"] == 2
    assert settings["version"] == 1
    assert suite.passes == (406, 406)


def test_best_codes_of_a_model_are_no_worse_than_its_mainstay_codes():
    model = judging.prepare(
        evaluation.Encoder(healthy, {}), DATA, TARGETS,
        protocol=PROTOCOL, batch_size=24, learned=None, progress=False,
    )  # fmt: skip
    for targeted, sign in ((False, -1), (True, 1)):
        start = sign * model.mainstay_codes(targeted=targeted)
        scores = functools.partial(model.average_precision, targeted=targeted)
        best = worst_case.best_codes(model, targeted=targeted)
        assert np.all(sign * (scores(best) - scores(start)) >= -1e-6)


def test_values_at_the_limit_raise_no_flag():
    limits = {name: flag.limit for name, flag in flags.FLAGS.items()}
    assert flags.raised(limits) == []
    above = flags.raised({name: limit + 0.01 for name, limit in limits.items()})
    assert [flag["flag"] for flag in above] == list(flags.FLAGS)
