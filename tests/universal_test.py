"""One perturbation for all images, judged on images that it has not seen; transfer."""

import numpy as np
import pytest

from saat_jax import attacks, encoders, evaluation, mainstay, reports
from tests import audit_test, tiny
from tests.audit_test import IMAGES, NUM_BITS, SIDE, codes_of, make

pytestmark = pytest.mark.usefixtures("quick_compilation")
brief = audit_test.brief


def matcher(images=IMAGES, **given):
    return evaluation.Matcher(make(), images, {"radius": 4}, seed=3, batch_size=4, **given)


@pytest.mark.parametrize("patch", [0.0, 0.06])
def test_the_perturbation_is_one_and_counts_on_unseen_images(patch, brief, tmp_path):
    record = evaluation.universal(
        matcher(), folder=tmp_path, epsilon=24 / 255, patch=patch, num_steps=60
    )
    arrays = dict(np.load(tmp_path / "universal.npz"))
    rows, change = arrays["held_out"], arrays["perturbation"]
    assert rows.tolist() == [1, 3, 5, 7, 9, 11]
    mask = np.asarray(attacks.patch_mask(SIDE, SIDE, share=patch)) if patch else None
    images = np.stack([IMAGES[row] for row in rows])
    if mask is None:
        assert np.abs(change).max() <= 24 / 255 + 1e-6
        changed = np.clip(np.round(images + 255.0 * change), 0, 255)
    else:
        assert mask.sum() == 16
        changed = np.where(mask, np.round(255 * change), images)
    apart = np.sum(codes_of(list(changed)) != codes_of(images), axis=1)
    assert record["held_out"]["universal"]["count"] == np.sum(apart > 4)
    assert record["held_out"]["untouched"]["count"] == 0
    assert record["held_out"]["universal"]["count"] > record["held_out"]["random"]["count"]


def test_all_images_may_be_sent_to_one_victim(brief, tmp_path):
    record = evaluation.universal(
        matcher(), folder=tmp_path, epsilon=1.0, patch=0.9, task="collide", num_steps=80
    )
    assert record["held_out"]["universal"]["rate"] == 1
    assert record["learned_on"] == 5


def test_images_of_several_sizes_are_refused_or_squeezed(brief, tmp_path):
    images = [*IMAGES[:4], np.resize(IMAGES[4], (20, 24, 3))]
    given = {"folder": tmp_path, "epsilon": 8 / 255, "num_steps": 2}

    def of_any_size(**changes):
        encoder = encoders.PERCEPTUAL_HASHES["dhash"]()
        return evaluation.Matcher(encoder, images, {"radius": 4}, seed=3, batch_size=4, **changes)

    with pytest.raises(ValueError, match="got 5 of 2 sizes; give `size`"):
        evaluation.universal(of_any_size(), **given)
    record = evaluation.universal(of_any_size(size=16), **given)
    assert record["held_out"]["untouched"]["trials"] == 2


def test_transfer_is_judged_by_each_matchers_own_codes(brief, tmp_path, capsys):
    other = np.random.default_rng(5).normal(size=(SIDE * SIDE * 3, NUM_BITS)).astype(np.float32)
    mixed = other + 2 * audit_test.PROJECTION
    near = encoders.from_jax(
        lambda x: x.reshape(len(x), -1) @ mixed - 0.5 * mixed.sum(axis=0),
        image_size=(SIDE, SIDE),
        name="near",
    )
    first = matcher()
    record = evaluation.transfer_matches(
        {"own": first, "near": first.by(near, {"radius": 4})}, folder=tmp_path, epsilon=6 / 255
    )
    matrix = record["matrix"]
    assert matrix["own"]["own"]["rate"] == matrix["near"]["near"]["rate"] == 1
    assert 0 < matrix["own"]["near"]["rate"] <= 1
    reports.show_audit(tmp_path)
    assert "crafted on / judged by" in capsys.readouterr().out
    with pytest.raises(ValueError, match="two matchers or more of the same images"):
        evaluation.transfer_matches({"own": first}, folder=tmp_path, epsilon=6 / 255)


def test_labels_are_left_by_one_perturbation_and_targets_have_their_own():
    weights = tiny.random_weights(0, num_bits=16, image_size=SIDE)
    net, variables = tiny.tiny_net(weights), tiny.tiny_variables(weights)

    def encode_fn(variables, images, alpha):
        return net.apply(variables, images - 0.5, alpha)

    rng = np.random.default_rng(2)
    images = rng.uniform(size=(24, SIDE, SIDE, 3)).astype(np.float32)
    labels = np.eye(4, dtype=np.float32)[np.arange(24) % 4]
    codes = np.sign(encode_fn(variables, images, 1.0))
    given = {"seed": 1, "batch_size": 8, "identity": {}}

    def crafted(epsilon, asked, targeted=False, **changes):
        settings = evaluation.AttackSettings.create(
            attack="universal", targeted=targeted, epsilon=epsilon, num_steps=40, **changes
        )
        encoder = evaluation.Encoder(encode_fn, variables)
        learned = evaluation.learned_universal(encoder, images, labels, codes, settings, **given)
        found = learned.target_codes(asked, targeted)
        attack = settings.build(encode_fn, found)
        return found.codes, attack(variables, images, found.codes, None, **found.arrays)

    votes = np.asarray(mainstay.mainstay_votes(labels, codes, labels))
    before = np.mean(votes * codes)
    rows, changed = crafted(0.1, labels)
    assert set(rows) == {0} and np.abs(changed - images).max() <= 0.1 + 1e-6
    assert np.mean(votes * np.sign(encode_fn(variables, changed, 1.0))) < before - 0.01
    rows, reached = crafted(0.5, labels[::-1], targeted=True)
    np.testing.assert_array_equal(rows, np.arange(24) % 4)
    there = np.asarray(mainstay.mainstay_votes(labels[::-1], codes, labels))
    assert np.mean(there * np.sign(encode_fn(variables, reached, 1.0))) > np.mean(there * codes)
    _, patched = crafted(None, labels, patch=0.25)
    same = np.all(patched == images, axis=-1).mean()
    assert same == pytest.approx(0.75)
