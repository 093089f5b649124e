"""Records: what is measured, what goes into them, when they are made and when refused."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saat_jax import attacks, datasets, evaluation, generative, hamming, mainstay, networks
from saat_jax.evaluation import crafting, judging, record_files
from saat_jax.evaluation import records as records_module
from tests import reference

EPSILON = 8 / 255
PROTOCOL = evaluation.Protocol(k=20, ties="average", normalizer="hits", seed=0)
MAINSTAY = {
    "attack": "mainstay",
    "targeted": False,
    "epsilon": EPSILON,
    "step_size": 2 / 255,
    "num_steps": 3,
    "anneal": True,
}
create = evaluation.AttackSettings.create
SUITE = {
    "away": create(**MAINSTAY),
    "towards": create(**MAINSTAY | {"targeted": True, "loss": "mean"}),
}
IDENTITY = {"model": "untrained", "step": 0}


@pytest.fixture(scope="module")
def problem():
    """(encode_fn, variables, dataset, target labels) of an untrained network on a few digits."""
    data = datasets.load_digits(image_size=16, num_query=11, num_database=40, num_train=24)
    model = networks.ConvNet(8, widths=(4,))
    variables = networks.init_variables(model, jax.random.key(1), image_size=16)
    targets = attacks.select_target_labels(
        data.query.labels, data.database.labels, np.random.default_rng(0)
    )
    return networks.make_encode_fn(model), variables, data, targets


def _batches(data, split, batch_size):
    return datasets.eval_batches(
        split, batch_size=batch_size, image_size=data.image_size, resize=data.resize
    )


def _evaluate(problem, folder, **changes):
    encode_fn, variables, data, targets = problem
    options = {"protocol": PROTOCOL, "identity": IDENTITY, "batch_size": 8, "num_examples": 3}
    options |= {"suite": SUITE, "target_labels": targets, "dataset": data} | changes
    arguments = [options.pop(name) for name in ("dataset", "suite", "target_labels")]
    return evaluation.evaluate(encode_fn, variables, *arguments, folder=folder, **options)


@pytest.fixture(scope="module")
def records(problem, tmp_path_factory):
    """(records, their folder), with all adversarial images."""
    folder = tmp_path_factory.mktemp("records") / "pretrained"
    return _evaluate(problem, folder, save_images=True), folder


def _codes(problem, split):
    encode_fn, variables, data, _ = problem
    images = datasets.load_images(
        split, np.arange(len(split)), image_size=data.image_size, resize=data.resize
    )
    return np.where(np.asarray(encode_fn(variables, images)) >= 0, 1, -1)


def _reference_map(codes, database_codes, labels, database_labels, k):
    """MAP at k, averaged over random orders of tied items."""
    precisions = []
    for code, label in zip(codes, labels, strict=True):
        distances = reference.hamming_distances(code, database_codes)
        relevant = reference.relevance(label, database_labels)
        rng = np.random.default_rng(0)
        samples = []
        for _ in range(300):
            order = np.lexsort([rng.random(len(distances)), distances])
            samples.append(reference.average_precision([relevant[i] for i in order], k, "hits"))
        precisions.append(np.mean(samples))
    return np.mean(precisions)


# --- encode ---


def test_encode_gives_the_codes_of_all_rows_in_order(problem):
    encode_fn, variables, data, _ = problem
    expected = _codes(problem, data.query)
    for batch_size in (11, 4, 16):
        codes = evaluation.encode(
            encode_fn, variables, _batches(data, data.query, batch_size), size=11
        )
        assert codes.dtype == np.float32
        np.testing.assert_array_equal(codes, expected)
    # The order of the batches does not matter: rows know their place.
    batches = reversed(list(_batches(data, data.query, 4)))
    np.testing.assert_array_equal(
        evaluation.encode(encode_fn, variables, batches, size=11), expected
    )


def test_encode_refuses_codes_that_are_not_finite(problem):
    _, variables, data, _ = problem

    def encode_fn(variables, images, alpha):
        return jnp.full((len(images), 4), jnp.nan)

    with pytest.raises(FloatingPointError, match="NaN or infinite codes"):
        evaluation.encode(encode_fn, variables, _batches(data, data.query, 4), size=11)


def test_encode_ignores_what_the_network_makes_of_padding():
    def encode_fn(variables, images, alpha):
        return jnp.where(images.sum((1, 2, 3))[:, None] == 0, jnp.nan, 0.5) * jnp.ones(4)

    batch = {
        "image": np.zeros((3, 2, 2, 3), np.float32),
        "index": np.array([1, 0, 2]),
        "mask": np.array([1, 1, 0], np.float32),
    }
    batch["image"][:2] = 0.5
    np.testing.assert_array_equal(
        evaluation.encode(encode_fn, {}, [batch], size=2), np.ones((2, 4))
    )


def test_encode_refuses_a_part_of_the_split(problem):
    encode_fn, variables, data, _ = problem
    batches = list(_batches(data, data.query, 4))[:2]
    with pytest.raises(ValueError, match="the batches cover 8 of 11 rows; pass them all"):
        evaluation.encode(encode_fn, variables, batches, size=11)
    with pytest.raises(ValueError, match="the batches cover 0 of 11 rows"):
        evaluation.encode(encode_fn, variables, [], size=11)


# --- attacks ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "cw"}, r"unknown attack 'cw'; expected one of \['auto_pgd', 'bim', 'cgat'"),
        (
            {"loss": "mse"},
            r"unknown attack loss 'mse'; expected one of \['focused', 'mean', 'pooled'\]",
        ),
        ({"loss": "pooled"}, "loss 'pooled' makes an image depend on its batch mates"),
        ({"attack": "hag", "targeted": True}, "'hag' is non-targeted only; set targeted to False"),
        ({"attack": "dhta"}, "'dhta' is targeted only; set targeted to True"),
        ({"epsilon": None}, "epsilon of attack 'mainstay' must be a number from 0 to 1, got None"),
        ({"epsilon": -0.1}, "epsilon must be a number from 0 to 1, got -0.1"),
        ({"num_steps": -1}, "num_steps must be a whole number from 0 to .*, got -1"),
        ({"momentum": 1.0}, r"no option 'momentum'; it has \['anneal', 'direction', 'loss', "),
        ({"attack": "noise"}, r"'noise' has no option 'anneal'; it has \[\]"),
    ],
)
def test_settings_name_what_exists(changes, message):
    with pytest.raises(ValueError, match=message):
        create(**MAINSTAY | changes)


def test_settings_ask_for_what_an_attack_needs():
    needed = {k: v for k, v in MAINSTAY.items() if k != "step_size"}
    with pytest.raises(ValueError, match="needs the option 'step_size'"):
        create(**needed)


@pytest.mark.parametrize(("anneal", "expected"), [(True, 3), (2000, 2000), (False, None)])
def test_the_tanh_scale_is_annealed_over_as_many_steps_as_the_settings_say(
    problem, anneal, expected
):
    target_codes = evaluation.TargetCodes(np.zeros((1, 8)), None)
    built = create(**MAINSTAY | {"anneal": anneal}).build(problem[0], target_codes)
    alphas = built.keywords.get("alphas")
    if expected is None:
        assert alphas is None
    else:
        np.testing.assert_array_equal(alphas, attacks.alpha_schedule(expected)[:3])


def _attack(problem, batch_size, settings, *, seed, **options):
    """(anchors, result, images) of an attack on the queries towards random anchors."""
    encode_fn, variables, data, _ = problem
    anchors = np.random.default_rng(0).choice([-1.0, 1.0], (len(data.query), 8)).astype(np.float32)
    result = evaluation.attack_queries(
        encode_fn,
        variables,
        lambda start: list(_batches(data, data.query, batch_size))[start:],
        evaluation.TargetCodes(anchors, None),
        settings,
        seed=seed,
        example_rows=range(len(data.query)),
        **options,
    )
    return anchors, result, result.examples


@pytest.mark.parametrize("name", SUITE)
def test_attack_queries_is_the_attack_with_a_key_for_each_query(problem, name):
    encode_fn, variables, data, _ = problem
    settings = SUITE[name]
    anchors, result, saved = _attack(problem, 4, settings, seed=5)
    images = datasets.load_images(data.query, np.arange(11), image_size=16, resize=None)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(5)))(jnp.arange(11))
    expected = attacks.pgd(
        encode_fn,
        variables,
        images,
        anchors,
        keys,
        epsilon=EPSILON,
        step_size=2 / 255,
        num_steps=3,
        targeted=settings.targeted,
        loss=settings.options.get("loss", "focused"),
        alphas=attacks.alpha_schedule(3),
    )
    assert saved.dtype == np.uint8
    levels = np.abs(saved - np.asarray(expected) * 255)
    # Half a level of rounding; the sign of a gradient near zero may differ with the batch.
    assert np.mean(levels <= 0.5 + 1e-3) > 0.999
    codes = np.asarray(hamming.binarize(encode_fn(variables, expected)))
    assert np.mean(result.codes == codes) > 0.98
    rounded = encode_fn(variables, saved.astype(np.float32) / 255)
    np.testing.assert_array_equal(result.rounded_codes, hamming.binarize(rounded))
    change = np.abs(expected - images)
    np.testing.assert_allclose(result.perturbation["linf"], change.max(), atol=1e-6)
    np.testing.assert_allclose(result.perturbation["mse"], np.mean(change**2), rtol=1e-2)
    assert 0 < result.seconds_per_image < 60


def test_attack_queries_does_not_depend_on_the_batches(problem):
    (_, first, images), (_, second, others) = (
        _attack(problem, batch_size, SUITE["away"], seed=0) for batch_size in (3, 16)
    )
    assert np.mean(images == others) > 0.999
    assert np.mean(first.codes == second.codes) > 0.98
    assert first.codes.shape == (11, 8)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda images: images + 2 * EPSILON, id="outside the ball"),
        pytest.param(lambda images: images - images.min() - EPSILON / 2, id="below zero"),
        pytest.param(lambda images: images * jnp.nan, id="not finite"),
    ],
)
def test_an_attack_outside_ball_or_range_is_not_reported(problem, monkeypatch, spoil, tmp_path):
    def attack(encode_fn, variables, images, *_, **__):
        return spoil(images)

    monkeypatch.setitem(evaluation.ATTACKS, "mainstay", evaluation.Attack(attack))
    settings = create(attack="mainstay", targeted=False, epsilon=EPSILON)
    with pytest.raises(ArithmeticError, match="the attack left the ball of radius 0.0313725 or"):
        _evaluate(problem, tmp_path, suite={"away": settings})
    assert not (tmp_path / "away.json").exists()


# --- every attack ---


def _all_directions():
    return [
        (name, targeted)
        for name, attack in evaluation.ATTACKS.items()
        for targeted in attack.targeted
        # Reads what was crafted elsewhere: see suites_test.
        if name != "images"
    ]


@pytest.fixture(scope="module")
def known(problem):
    """What an attacker knows, with stand-ins for the networks of THA and ProS-GAN."""
    encode_fn, variables, data, targets = problem
    generator = generative.Generator(base_width=8)
    semantics = np.random.default_rng(0).normal(size=(len(data.query), 12)).astype(np.float32)
    params = generator.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), semantics[:1])["params"]

    def tha(labels, targeted):
        codes = np.where(np.random.default_rng(1).random((len(labels), 8)) < 0.5, -1.0, 1.0)
        return evaluation.TargetCodes(codes.astype(np.float32), codes)

    def prosgan(labels, targeted):
        codes = tha(labels, targeted).theory
        arrays, static = {"generator_params": params}, {"generator": generator}
        return evaluation.TargetCodes(semantics, codes, arrays, static)

    learned = {name: evaluation.Learned(f, {}) for name, f in (("tha", tha), ("prosgan", prosgan))}
    learned["surrogate"] = evaluation.surrogate(
        encode_fn, variables, data, targets, identity={}, protocol=PROTOCOL, batch_size=16
    )
    rows = np.arange(len(data.train))
    images = datasets.load_images(data.train, rows, image_size=16, resize=None)
    codes = np.asarray(hamming.binarize(encode_fn(variables, images)))
    learned["universal"] = evaluation.learned_universal(
        evaluation.Encoder(encode_fn, variables),
        images,
        data.train.labels,
        codes,
        create(attack="universal", targeted=False, epsilon=EPSILON, num_steps=3),
        seed=0,
        batch_size=16,
        identity={},
    )
    return evaluation.attacker_knowledge(
        encode_fn, variables, data, targets, protocol=PROTOCOL, batch_size=16, learned=learned
    )


def _settings(name, targeted, **changes):
    """An attack with three steps and whatever else it needs."""
    attack = evaluation.ATTACKS[name]
    options = {"num_steps": 3, "num_queries": 9, "step_size": 2 / 255, **changes}
    options = {k: v for k, v in options.items() if k in attack.all_options}
    return create(attack=name, targeted=targeted, epsilon=EPSILON, **options)


@pytest.mark.parametrize(("name", "targeted"), _all_directions())
def test_every_attack_stays_inside_repeats_and_minds_no_batch_mates(problem, known, name, targeted):
    encode_fn, variables, data, _ = problem
    settings = _settings(name, targeted)
    target_codes = settings.target_codes(known)
    images = datasets.load_images(data.query, np.arange(11), image_size=16, resize=None)
    craft = jax.jit(settings.build(encode_fn, target_codes))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(3)))(jnp.arange(11))

    def run(rows):
        rows = np.asarray(rows)
        codes = jax.tree.map(lambda array: np.asarray(array)[rows], target_codes.codes)
        crafted = craft(variables, images[rows], codes, keys[rows], **target_codes.arrays)
        return np.asarray(getattr(crafted, "images", crafted))

    whole = run(np.arange(11))
    assert np.abs(whole - images).max() <= EPSILON + 1e-6
    assert whole.min() >= 0 and whole.max() <= 1 and np.isfinite(whole).all()
    assert np.abs(whole - images).max() > 1 / 255
    np.testing.assert_array_equal(run(np.arange(11)), whole)
    # Others beside it, in another order: the sign of a gradient near zero may differ.
    mixed = run([7, 2, 2, 9, 0, 10, 3, 3, 3, 1, 8])
    np.testing.assert_allclose(mixed[[0, 1, 3]], whole[[7, 2, 9]], atol=2 * EPSILON)
    assert np.mean(np.abs(mixed[[0, 1, 3]] - whole[[7, 2, 9]]) < 1e-4) > 0.99


@pytest.mark.parametrize("name", ["noise", "mainstay", "vmi_fgsm", "di_fgsm"])
def test_what_is_random_hangs_on_the_seed(problem, known, name):
    settings = _settings(name, False)
    first, second = (
        evaluation.attack_queries(
            *problem[:2],
            lambda start: _batches(problem[2], problem[2].query, 11),
            settings.target_codes(known),
            settings,
            seed=seed,
            example_rows=range(11),
        ).examples
        for seed in (0, 1)
    )
    assert (first != second).any()


def test_theory_is_the_code_an_attack_would_reach(problem, known):
    own = np.asarray(hamming.binarize(known.soft_codes))
    train, labels = known.train_codes, known.train_labels
    for name, targeted, expected in (
        ("hag", False, -own),
        ("mainstay", False, -mainstay.mainstay_codes(known.labels, train, labels)),
        ("mainstay", True, mainstay.mainstay_codes(known.target_labels, train, labels)),
        ("cgat", True, mainstay.center_codes(known.target_labels, train, labels)),
        ("sdha", False, -mainstay.consensus_codes(known.labels, train, labels)),
    ):
        theory = _settings(name, targeted).target_codes(known).theory
        np.testing.assert_array_equal(theory, expected, err_msg=name)
    assert _settings("noise", False).target_codes(known).theory is None


def test_anchors_have_the_target_labels(known):
    codes = _settings("p2p", True).target_codes(known).codes
    for code, label in zip(codes, known.target_labels, strict=True):
        same = (known.database_labels == label).all(1)
        assert (known.database_codes[same] == code).all(1).any()


def test_an_attack_that_was_not_learned_is_refused(known):
    with pytest.raises(ValueError, match=r"no network 'tha' was trained for it"):
        _settings("tha", True).target_codes(dataclasses.replace(known, learned={}))


@pytest.mark.parametrize("damaged", [False, True])
def test_an_attack_goes_on_where_it_was_stopped(problem, tmp_path, monkeypatch, damaged):
    whole = _evaluate(problem, tmp_path / "whole", save_images=True, batch_size=4)
    folder = tmp_path / "whole"
    calls = []

    def stop(folder, row, image):
        calls.append(row)
        if row == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(records_module, "_save_image", stop)
    again = functools.partial(_evaluate, problem, tmp_path / "cut", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        again(save_images=True)
    assert calls == list(range(7)) and not (tmp_path / "cut" / "away.json").exists()
    monkeypatch.setattr(records_module, "_save_image", lambda folder, row, image: calls.append(row))
    calls.clear()
    if damaged:
        (part,) = (tmp_path / "cut").glob(".away-*/0/000000.npz")
        part.write_bytes(part.read_bytes()[:-40])
    made = again(save_images=True)
    # The first batch is not attacked again, if it is sound; the second, which was cut, is.
    assert calls[:7] == list(range(0 if damaged else 4, 7 if damaged else 11))
    for name, record in made.items():
        for field in ("metrics", "curves", "perturbation"):
            assert record[field] == whole[name][field]
        with np.load(folder / f"{name}.npz") as a, np.load(tmp_path / "cut" / f"{name}.npz") as b:
            for array in a:
                np.testing.assert_array_equal(a[array], b[array])
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]


def test_images_of_two_settings_never_mix(problem, tmp_path, monkeypatch):
    def encode_fn(variables, images, alpha):
        return images.reshape(len(images), -1)[:, 100:108] - 0.5

    def perturb(encode_fn, variables, images, *_, epsilon, targeted):
        return jnp.minimum(images + epsilon, 1)

    monkeypatch.setitem(
        evaluation.ATTACKS,
        "noise",
        evaluation.Attack(perturb, evaluation.ATTACKS["noise"].targets),
    )
    save_image = records_module._save_image

    def brighten(levels, *, save=save_image):
        monkeypatch.setattr(records_module, "_save_image", save)
        settings = create(attack="noise", targeted=False, epsilon=levels / 255)
        arguments = (encode_fn, {}, *problem[2:]), tmp_path
        _evaluate(*arguments, suite={"light": settings}, batch_size=4, save_images=True)
        return {path.name: path.read_bytes() for path in (tmp_path / "light").iterdir()}

    def stop(folder, row, image):
        if row == 6:
            raise KeyboardInterrupt
        save_image(folder, row, image)

    weak = brighten(8)
    with pytest.raises(KeyboardInterrupt):
        brighten(64, save=stop)
    assert not (tmp_path / "light.json").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "earlier").glob("light.*/*")}
    assert kept == weak
    assert brighten(8) == weak
    assert not list(tmp_path.glob(".*"))


def test_what_others_left_unfinished_goes_when_an_attack_begins(tmp_path):
    places = [
        record_files.RecordFiles(tmp_path, name, digest)
        for name, digest in (("away", "a" * 64), ("away", "b" * 64), ("away_far", "b" * 64))
    ]
    mine, other, longer = (place.unfinished("png", 4) for place in places)
    images = tmp_path / "away"
    for folder in (mine, other, longer, images):
        folder.mkdir()
    record = tmp_path / "away.json"
    record.write_text(json.dumps({"images_saved": False, "identity": "a" * 64}))
    places[0].make_room(mine, save_images=True)
    assert mine.is_dir() and images.is_dir() and longer.is_dir() and not other.exists()
    # One that begins anew keeps no images, and no record that claims them.
    record.write_text(json.dumps({"images_saved": False, "identity": "b" * 64}))
    places[1].make_room(other, save_images=True)
    assert record.exists() and not mine.exists() and not images.exists()
    images.mkdir()
    record.write_text(json.dumps({"images_saved": True, "identity": "b" * 64}))
    places[1].make_room(other)
    assert record.exists() and images.is_dir()
    places[1].make_room(other, save_images=True)
    assert not record.exists() and not images.exists() and longer.is_dir()
    assert not (tmp_path / "earlier").exists()


def test_transfer_is_judged_by_every_model(problem, tmp_path):
    encode_fn, variables, data, targets = problem
    short = networks.ConvNet(4, widths=(4,))
    models = {
        "long": evaluation.Encoder(encode_fn, variables),
        "short": evaluation.Encoder(
            networks.make_encode_fn(short),
            networks.init_variables(short, jax.random.key(2), image_size=16),
        ),
    }
    run = functools.partial(
        evaluation.transfer,
        models,
        data,
        SUITE,
        targets,
        protocol=PROTOCOL,
        folder=tmp_path,
        identities={"long": {"step": 0}, "short": {"step": 0}},
        batch_size=4,
    )
    tables = run()
    assert tables.keys() == SUITE.keys()
    for name, table in tables.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == table
        assert table["matrix"].keys() == table["benign"].keys() == models.keys()
    alone = _evaluate(problem, tmp_path / "long", batch_size=4)
    for name, metric in (("away", "map"), ("towards", "t_map")):
        assert tables[name]["matrix"]["long"]["long"] == alone[name]["metrics"][metric]
        assert tables[name]["benign"]["long"] == alone["benign"]["metrics"][metric]
    # Source by source: what is there is not crafted again.
    path = tmp_path / "away.json"
    table = json.loads(path.read_text())
    table["matrix"] = {"long": {"long": -1.0, "short": -1.0}}
    path.write_text(json.dumps(table))
    again = run()["away"]["matrix"]
    assert again["long"] == {"long": -1.0, "short": -1.0}
    assert again["short"] == tables["away"]["matrix"]["short"]


# --- records ---


def test_records_hold_their_protocol(problem, records):
    _, _, data, targets = problem
    made, folder = records
    assert list(made) == ["benign", "away", "towards"]
    for name, record in made.items():
        assert json.loads((folder / f"{name}.json").read_text()) == record
        protocol = record["protocol"]
        assert protocol | PROTOCOL.settings() == protocol
        assert protocol["dataset"] == "digits" and protocol["targets"] == "disjoint"
        sizes = {"num_queries": 11, "num_database": 40, "num_train": 24, "num_classes": 10}
        assert protocol | sizes | {"num_bits": 8, "image_size": 16} == protocol
        assert record["model"] == "pretrained" and record["attack"] == name
        assert record["device"] and record["jax"] and record["version"]
        assert record["curves"].keys() >= {"precision_recall", "precision_at_n"}
    assert not made["benign"]["targeted"] and made["benign"]["settings"] is None
    own, targets = {"map", "ndcg", "wap"}, {"t_map", "t_ndcg", "t_wap"}
    assert made["benign"]["metrics"].keys() == own | targets
    assert made["away"]["metrics"].keys() == own | {"map_8bit", "theory_map"}
    assert made["towards"]["metrics"].keys() == targets | {"t_map_8bit", "theory_t_map"}
    for name in SUITE:
        assert made[name]["settings"] == SUITE[name].asdict()
        assert made[name]["targeted"] == SUITE[name].targeted
        assert made[name]["perturbation"]["linf"] <= EPSILON + 1e-6
        assert made[name]["seconds_per_image"] > 0


def test_numbers_follow_from_the_codes(problem, records):
    _, _, data, targets = problem
    query, database, train = (_codes(problem, s) for s in (data.query, data.database, data.train))
    own, others = data.query.labels, data.database.labels
    scores = {
        "map": _reference_map(query, database, own, others, 20),
        "t_map": _reference_map(query, database, targets, others, 20),
    }
    made = {name: record["metrics"] for name, record in records[0].items()}
    for name, expected in scores.items():
        np.testing.assert_allclose(made["benign"][name], expected, atol=0.02)
    # Theory: the codes an attack can at best reach are the anchors, or their opposites.
    away = mainstay.mainstay_codes(own, train, data.train.labels)
    towards = mainstay.mainstay_codes(targets, train, data.train.labels)
    score = functools.partial(PROTOCOL.map_at_k, database=database, others=others)
    np.testing.assert_allclose(
        made["away"]["theory_map"], score(codes=-np.asarray(away), labels=own), rtol=1e-6
    )
    np.testing.assert_allclose(
        made["towards"]["theory_t_map"], score(codes=np.asarray(towards), labels=targets), rtol=1e-6
    )


def test_examples_are_for_people_to_look_at(problem, records):
    _, _, data, targets = problem
    rows = [0, 5, 10]
    query = datasets.load_images(data.query, rows, image_size=16, resize=None)
    database_codes = _codes(problem, data.database)
    for name in records[0]:
        with np.load(records[1] / f"{name}.npz") as file:
            examples = dict(file)
        np.testing.assert_allclose(examples["benign_images"], query, atol=1e-6)
        assert np.abs(examples["images"] - query).max() <= (EPSILON + 0.51 / 255) * (
            name != "benign"
        )
        assert examples["top_images"].shape == (3, 10, 16, 16, 3)
        np.testing.assert_array_equal(examples["labels"], data.query.labels[rows] > 0)
        np.testing.assert_array_equal(examples["target_labels"], targets[rows] > 0)
        assert list(examples["class_names"]) == list(data.class_names)
        if name == "benign":
            for place, row in enumerate(rows):
                distances = reference.hamming_distances(
                    _codes(problem, data.query)[row], database_codes
                )
                top = reference.ranking(distances)[:10]
                relevant = reference.relevance(data.query.labels[row], data.database.labels[top])
                np.testing.assert_array_equal(examples["top_relevant"][place], relevant)
                np.testing.assert_array_equal(
                    examples["top_images"][place], data.database.images[top]
                )


def test_images_are_saved_within_the_ball(problem, records):
    _, _, data, _ = problem
    for name in SUITE:
        paths = sorted((records[1] / name).iterdir())
        assert [path.name for path in paths] == [f"{row:06d}.png" for row in range(11)]
        saved = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)
        change = np.abs(saved - data.query.images)
        # 8 / 255 is eight grey levels exactly, and the queries lie on grey levels.
        assert 0 < change.max() <= 8
    assert not (records[1] / "benign").exists()


def _times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def test_finished_records_are_not_made_again(problem, records, monkeypatch):
    first, folder = records
    times = _times(folder)

    def encode(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(judging, "encode", encode)
    again = functools.partial(_evaluate, problem, folder, save_images=True)
    assert again() == first
    # How many images go at once is no part of what is measured.
    assert again(batch_size=3) == first
    data = dataclasses.replace(problem[2], query=problem[2].database)
    for changes in (
        {"identity": IDENTITY | {"step": 1}},
        {"protocol": dataclasses.replace(PROTOCOL, k=None)},
        {"protocol": dataclasses.replace(PROTOCOL, seed=1)},
        {"suite": SUITE | {"away": dataclasses.replace(SUITE["away"], epsilon=4 / 255)}},
        {"target_labels": problem[3][::-1]},
        {"dataset": data, "target_labels": np.resize(problem[3], data.query.labels.shape)},
        {"num_examples": 4},
    ):
        with pytest.raises(AssertionError, match="made again"):
            again(**changes)
    assert _times(folder) == times


def test_an_attack_of_ones_own_is_judged_as_the_docs_show(problem, tmp_path, monkeypatch):
    docs = (pathlib.Path(__file__).parents[1] / "docs" / "attacks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", docs, flags=re.DOTALL)
    # Taken away again after the test.
    monkeypatch.setitem(evaluation.ATTACKS, "adam", None)
    monkeypatch.delitem(evaluation.ATTACKS, "adam")
    names = {}
    exec(compile(code, "attacks.md", "exec"), names)
    made = _evaluate(problem, tmp_path / "model", suite={"mine": names["settings"]})
    assert made["mine"]["settings"] == names["settings"].asdict()
    assert made["mine"]["metrics"]["map"] < made["benign"]["metrics"]["map"]
    with pytest.raises(ValueError, match="attack 'adam' already"):
        exec(compile(code, "attacks.md", "exec"), {})


def test_a_record_of_other_settings_is_kept(problem, records, tmp_path, capsys):
    first, folder = records
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    files = {path.name: path.read_bytes() for path in copy.glob("away.*")}
    suite = {"away": dataclasses.replace(SUITE["away"], epsilon=4 / 255)}
    made = _evaluate(problem, copy, suite=suite)
    kept = f"away.{first['away']['identity'][:8]}"
    assert f"kept as {copy / 'earlier' / kept}.json" in capsys.readouterr().out
    for name, content in files.items():
        assert (copy / "earlier" / name.replace("away", kept)).read_bytes() == content
    assert len([*(copy / "earlier" / kept).glob("*.png")]) == 11
    assert made["benign"] == first["benign"] and made["away"]["settings"]["epsilon"] == 4 / 255


def test_what_an_earlier_version_has_finished_is_found(problem, records, monkeypatch):
    first, folder = records
    monkeypatch.setattr(judging.metadata, "version", lambda _: "9.9.9")
    assert _evaluate(problem, folder, save_images=True) == first


def test_queries_without_a_label_are_counted_and_skipped_if_asked(problem, tmp_path):
    labels = problem[2].query.labels.copy()
    labels[:3] = 0
    data = dataclasses.replace(
        problem[2], query=dataclasses.replace(problem[2].query, labels=labels)
    )
    made = {
        count: _evaluate(
            problem,
            tmp_path / count,
            dataset=data,
            suite={},
            target_labels=None,
            protocol=dataclasses.replace(PROTOCOL, unlabelled_queries=count),
        )["benign"]
        for count in ("zero", "skip")
    }
    zero, skip = (made[count]["metrics"]["map"] for count in ("zero", "skip"))
    np.testing.assert_allclose(zero * 11, skip * 8, rtol=1e-6)
    assert [record["num_unlabelled"] for record in made.values()] == [3, 3]
    assert "unlabelled_queries" not in made["zero"]["protocol"]
    assert "t_map" not in made["zero"]["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": {"../x": SUITE["away"]}}, "name of a attack|name of an attack"),
        ({"suite": {"benign": SUITE["away"]}}, "cannot be named 'benign'"),
        ({"target_labels": None}, "'towards' is targeted and needs target_labels"),
        ({"target_labels": np.zeros((3, 10))}, "target_labels must be of shape"),
        ({"num_examples": -1}, "num_examples must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing(problem, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _evaluate(problem, tmp_path / "a" / "b", **changes)
    assert not [*tmp_path.iterdir()]


def test_one_record_is_made_again_without_the_others(problem, records, tmp_path):
    first, folder = records
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "away.npz").unlink()
    # What a kill between the record and the removal of its parts leaves.
    place = record_files.RecordFiles(copy, "towards", first["towards"]["identity"])
    left = place.unfinished("png", 8)
    left.mkdir()
    times = _times(copy)
    again = _evaluate(problem, copy, save_images=True)
    new = {name for name, time in _times(copy).items() if time != times.get(name)}
    assert new == {"away.json", "away.npz"} and not left.exists()
    assert again["away"]["metrics"] == first["away"]["metrics"]
    # Images that are wanted and missing are a reason too, images that are not wanted are none.
    (copy / "away" / "000003.png").unlink()
    times = _times(copy)
    assert _evaluate(problem, copy)["away"] == again["away"] and _times(copy) == times
    _evaluate(problem, copy, save_images=True)
    assert (copy / "away" / "000003.png").is_file()


def test_rounding_stays_inside_the_ball():
    images = np.array([0.0, 0.5, 1.0, 100 / 255], np.float32)
    epsilon = 7.65 / 255
    adversarial = np.clip(images + np.float32(epsilon), 0, 1)
    levels = crafting.round_inside(adversarial, images, epsilon)
    # 7.65 would round to 8 levels; 127.5 + 7.65 = 135.15 to 135.
    np.testing.assert_array_equal(levels, [7, 135, 255, 107])


def test_records_do_not_depend_on_the_batch_size(problem, records, tmp_path):
    made = _evaluate(problem, tmp_path / "pretrained", batch_size=5)
    for name, record in made.items():
        expected = records[0][name]
        assert record["metrics"].keys() == expected["metrics"].keys()
        for metric, value in record["metrics"].items():
            # One bit of one query may hang on the sign of a gradient near zero.
            np.testing.assert_allclose(value, expected["metrics"][metric], atol=0.01)


def test_base_rate_worked_by_hand():
    # The first query meets two of three items, the second one, the third none: 3 of 9.
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32)
    database_labels = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    assert datasets.relevant_share(labels, database_labels) == pytest.approx(3 / 9)


def test_curves_are_plain_lists(problem):
    rng = np.random.default_rng(0)
    codes, database = (rng.choice([-1.0, 1.0], (size, 8)) for size in (5, 150))
    labels, others = (rng.integers(0, 2, (size, 3)).astype(float) for size in (5, 150))
    curves = PROTOCOL.curves(codes, database, labels, others)
    assert json.loads(json.dumps(curves)) == curves
    # Cut-offs stop at the database's size.
    assert curves["precision_at_n"]["n"] == [100, 110, 120, 130, 140, 150]
    share = np.mean(labels @ others.T > 0)
    np.testing.assert_allclose(curves["precision_at_n"]["precision"][-1], share, atol=1e-5)
