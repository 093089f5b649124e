"""Certificates: bounds that cover, exact ones by brute force, and no attack that goes beyond."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from saat_jax import attacks, certificates, encoders, evaluation, reports
from saat_jax.datasets.photos import load_photos
from tests import audit_test
from tests.audit_test import IMAGES, PROJECTION, make

pytestmark = pytest.mark.usefixtures("quick_compilation")
brief = audit_test.brief


def test_bounds_of_a_probability_cover_it():
    rng, alpha, trials = np.random.default_rng(0), 0.05, 60
    for p in (0.02, 0.3, 0.5, 0.9, 0.995):
        counts = rng.binomial(trials, p, 20_000)
        for bound, covers in (
            (certificates.lower_bound, lambda b, p=p: b <= p),
            (certificates.upper_bound, lambda b, p=p: b >= p),
        ):
            share = np.mean(covers(bound(counts, trials, alpha)))
            # By chance alone it would be less than that in one case of 10,000.
            assert share >= 1 - alpha - 4 * np.sqrt(alpha / 20_000)
    assert certificates.lower_bound(0, 10, 0.01) == 0
    assert certificates.upper_bound(10, 10, 0.01) == 1


def test_the_bound_of_a_distance_covers_what_a_shift_makes_of_it():
    # The distance is the noisy value itself, so that a shift by epsilon moves its quantile as far.
    rng, sigma, epsilon, alpha = np.random.default_rng(1), 0.5, 0.3, 0.05
    draws = rng.normal(scale=sigma, size=(4000, 200))
    for share in (0.5, 0.2):
        true = sigma * stats.norm.ppf(share) + epsilon
        bounds = certificates.distance_bound(draws, epsilon, sigma=sigma, alpha=alpha, share=share)
        assert np.mean(bounds >= true) >= 1 - alpha - 0.015
        assert np.median(bounds) < true + 0.2
    few = certificates.distance_bound(draws[:, :3], 2.0, sigma=sigma, alpha=alpha)
    assert np.all(np.isinf(few))


def test_a_half_space_is_certified_up_to_its_border():
    # Of a linear bit the smoothed decision changes exactly at the border.
    sigma, margin, num = 0.25, 0.4, 100_000
    draws = np.random.default_rng(2).normal(scale=sigma, size=num) + margin
    radius = certificates.evasion_radius(np.sum(draws > 0), num, sigma=sigma, alpha=0.001)
    assert 0.37 < radius <= margin
    assert certificates.evasion_radius(40, 100, sigma=sigma, alpha=0.001) == 0
    other = certificates.collision_radius(np.sum(draws < 0), num, sigma=sigma, alpha=0.001)
    assert other == pytest.approx(radius)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_brute_force_flips_no_more_than_a_linear_hash_may(norm):
    rng = np.random.default_rng(3)
    hashed = certificates.LinearHash(
        rng.normal(size=(2, 2)), rng.normal(size=(3, 2)), certificates.lower_median, np.zeros(6)
    )
    corners = np.array([*itertools.product([-1.0, 1.0], repeat=4)]).reshape(-1, 2, 2, 1)
    reached = []
    for _ in range(40):
        image = rng.uniform(50, 200, (2, 2, 3))
        before = certificates.linear_values(hashed, image)
        bits = before > certificates.lower_median(before)
        may_flip, most = certificates.linear_flips(hashed, image, 6.0, norm=norm)
        steps = (
            6.0 * corners
            if norm == "linf"
            else 6.0 * corners / np.linalg.norm(corners[0] * np.ones(3))
        )
        flipped = []
        for step in steps:
            values = certificates.linear_values(hashed, image + step)
            flipped.append(bits != (values > certificates.lower_median(values)))
        assert not np.any(np.any(flipped, axis=0) & ~may_flip)
        assert np.sum(flipped, axis=1).max() <= most
        reached.append(np.sum(flipped, axis=1).max() == most)
    assert np.mean(reached) > 0.3


def test_the_linear_form_of_pdq_is_pdq():
    pytest.importorskip("pdqhash")
    for image in load_photos("", longest=120).images[:5]:
        hashed = encoders.linear_pdq(*image.shape[:2])
        values = certificates.linear_values(hashed, image)
        bits = values > certificates.lower_median(values)
        np.testing.assert_array_equal(bits, encoders.pdq().run([image])[0] > 0)


@pytest.fixture(scope="module")
def audited(brief, tmp_path_factory):
    """PDQ of a few photos, attacked and certified in one folder."""
    pytest.importorskip("pdqhash")
    folder = tmp_path_factory.mktemp("certify")
    matcher = evaluation.Matcher(
        encoders.pdq(), "", {"radius": 31}, longest=96, size=96, limit=3, batch_size=3
    )
    evaluation.attack(matcher, folder=folder, epsilons=(1 / 255, 2 / 255))
    record = evaluation.certify(matcher, folder=folder, num_draws=200, epsilons=(0.1, 0.5))
    return matcher, record, folder


def test_no_attack_flips_more_than_is_proved_of_pdq(audited, capsys):
    _, record, folder = audited
    attacked = {line["level"]: line for line in record["linear"] if "broken" in line}
    assert set(attacked) == {1, 2}
    for line in attacked.values():
        assert line["contradictions"] == 0 and line["flipped"] <= line["flips"]
        assert line["proved"]["count"] + line["broken"]["count"] <= 3
    assert attacked[2]["flipped"] > 10
    reports.show_audit(folder)
    told = capsys.readouterr().out
    assert "What is proved" in told and "proved: not evaded" in told


def test_no_attack_moves_the_smoothed_matcher_farther_than_is_proved():
    """Of a linear hash, along the worst direction of each of its bits and of all together."""
    sigma, num_draws, radius = 0.2, 400, 3
    encoder = make()
    codes = encoder.run(IMAGES[:4])
    plain = evaluation.Matcher(encoder, IMAGES[:4], {"radius": radius}, seed=0, batch_size=4)
    tried = 0
    for row, image in enumerate(IMAGES[:4]):
        draws = np.concatenate(
            [*encoders.draw_outputs(encoder, sigma=sigma)(image, jax.random.key(row), num_draws)]
        )
        apart = np.sum((draws >= 0) != (codes[row] >= 0), axis=1)
        matches = np.sum(apart <= radius)
        proved = certificates.evasion_radius(matches, num_draws, sigma=sigma, alpha=0.001)
        bits = certificates.bit_radii(
            np.sum(draws >= 0, axis=0), num_draws, sigma=sigma, alpha=0.001
        )
        signs = np.where(codes[row] >= 0, 1, -1)
        directions = [PROJECTION * -signs, np.sum(PROJECTION * -signs, axis=1, keepdims=True)]
        found = np.concatenate(directions, axis=1).T
        for direction in found / np.linalg.norm(found, axis=1, keepdims=True):
            for length in {float(proved), *map(float, np.quantile(bits, [0.2, 0.5]))}:
                if not length:
                    continue
                tried += 1
                # Exactly, without chance: the vote on a linear bit is that of the image itself.
                moved = (image / 255).reshape(-1) + 0.999 * length * direction
                flipped = (moved @ PROJECTION >= 0) != (codes[row] >= 0)
                assert flipped.sum() <= certificates.max_flips(bits, length)
                if length == proved:
                    noise = np.random.default_rng(row).normal(scale=sigma, size=(2000, len(moved)))
                    noisy = (moved + noise) @ PROJECTION >= 0
                    share = np.mean(np.sum(noisy != (codes[row] >= 0), axis=1) <= radius)
                    assert share > 0.5 - 0.05
    assert tried > 20 and len(plain.rows) == 4


def test_the_search_of_the_library_stays_within_the_bits_radii_in_the_l2_ball():
    encoder, sigma = make(), 0.2
    images = jnp.asarray(np.stack(IMAGES[:3]) / np.float32(255))
    codes = encoder.run(IMAGES[:3])
    radii = []
    for row, image in enumerate(IMAGES[:3]):
        drawn = encoders.draw_outputs(encoder, sigma=sigma)(image, jax.random.key(row), 600)
        positive = np.sum(np.concatenate([*drawn]) >= 0, axis=0)
        radii.append(certificates.bit_radii(positive, 600, sigma=sigma, alpha=0.001))
    for norm in (0.3, 1.0):
        found = attacks.pgd(
            encoder.encode_fn,
            encoder.variables,
            images,
            jnp.sign(codes),
            jax.random.key(0),
            targeted=False,
            # Radii of the library's ball are root means.
            epsilon=norm / np.sqrt(images[0].size),
            step_size=norm / np.sqrt(images[0].size) / 4,
            num_steps=60,
            loss="mean",
            norm="l2",
            direction="unit",
        )
        change = np.asarray(found - images).reshape(3, -1)
        assert np.linalg.norm(change, axis=1).max() <= norm * 1.001
        flipped = (np.asarray(found).reshape(3, -1) @ PROJECTION >= 0) != (codes >= 0)
        most = certificates.max_flips(np.stack(radii), norm)
        assert np.all(flipped.sum(axis=1) <= most) and flipped.sum() > 0


def test_a_stopped_certification_goes_on_and_draws_belong_to_images(tmp_path, brief):
    def certified(folder, **changes):
        matcher = evaluation.Matcher(
            make(), IMAGES[:6], {"radius": 4}, seed=1, batch_size=4, **changes
        )
        return evaluation.certify(matcher, folder=folder, num_draws=100, sigma=0.1)

    record = certified(tmp_path / "whole")
    assert record == certified(tmp_path / "whole")
    few = certified(tmp_path / "few", limit=2)
    assert few["images"]["attacked"] == 2
    whole, part = (dict(np.load(tmp_path / n / "certify.npz")) for n in ("whole", "few"))
    np.testing.assert_array_equal(part["distances"], whole["distances"][[0, 5]])
    assert record["smoothed_matches"]["rate"] == 1
    with pytest.raises(ValueError, match="a point of kind 'radius'"):
        matcher = evaluation.Matcher(make(), IMAGES[:6], {"cosine": 0.9})
        evaluation.certify(matcher, folder=tmp_path / "no")


def test_the_smoothed_encoder_and_matcher_are_the_votes_of_copies():
    image, key_of = IMAGES[0], encoders.smoothing._key
    encoder, given = make(), {"sigma": 0.3, "num_draws": 130, "seed": 5}
    drawn = encoders.draw_outputs(encoder, sigma=0.3)(image, key_of(5, image), 130)
    bits = np.concatenate([*drawn]) >= 0
    assert bits.shape == (130, 24)
    smoothed = encoders.smoothed(encoder, **given)
    np.testing.assert_allclose(smoothed.run([image])[0], 2 * bits.mean(axis=0) - 1, rtol=1e-6)
    listed = encoder.run(IMAGES[:2])
    votes = encoders.match_votes(encoder, [image], listed, radius=4, **given)
    apart = np.sum(bits[:, None] != (listed >= 0), axis=2)
    np.testing.assert_allclose(votes[0], np.mean(apart <= 4, axis=0))
    assert smoothed.fingerprint != encoder.fingerprint
    assert dataclasses.replace(smoothed).name == "projection, smoothed"
