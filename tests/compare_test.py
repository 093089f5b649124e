"""Comparing runs: means over seeds, and differences that are those of the same queries."""

import json

import numpy as np
import pytest

from launch import command, main
from saat_jax.reports import compare
from tests.pages import Page
from tests.reports_test import PROTOCOL, write_run

NUM_QUERIES = 60


def _with_scores(folder, seed, gain=0.0, protocol=PROTOCOL):
    """A run whose records have a score for each query, hardened ones by a gain above the others."""
    write_run(folder, protocol={**protocol, "seed": seed})
    base = np.random.default_rng(seed).uniform(0.2, 0.8, NUM_QUERIES)
    for path in folder.glob("records/*/*.npz"):
        own = gain * (path.parent.name == "hardened")
        noise = 0.01 * np.random.default_rng([seed, len(path.stem)]).normal(size=NUM_QUERIES)
        arrays = dict(np.load(path)) | {"average_precision": base + own + noise * bool(own)}
        np.savez(path, **arrays)
        record = json.loads(path.with_suffix(".json").read_text())
        key = "t_map" if record["targeted"] else "map"
        record["metrics"][key] = float(arrays["average_precision"].mean())
        path.with_suffix(".json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "three"
    for seed, gain in enumerate((0.10, 0.12, 0.05)):
        _with_scores(folder / f"seed_{seed}", seed, gain)
    return folder


def test_differences_are_of_the_same_queries_seed_by_seed(experiment):
    before, after = compare.load_arms([experiment])
    assert (before.label, after.label) == ("pretrained", "hardened")
    found = compare.difference(after, before, "mainstay")
    pairs = []
    for seed in range(3):
        records = experiment / f"seed_{seed}" / "records"
        ap = [
            np.load(records / model / "mainstay.npz")["average_precision"]
            for model in ("hardened", "pretrained")
        ]
        pairs.append(ap[0] - ap[1])
    np.testing.assert_allclose(found.by_seed, [pair.mean() for pair in pairs])
    assert found.mean == pytest.approx(np.mean(found.by_seed)) and found.num_queries == 180
    # The interval of a mean of means, by the plain formula.
    error = np.sqrt(sum(pair.var() / NUM_QUERIES for pair in pairs)) / 3
    low, high = found.interval
    assert low == pytest.approx(found.mean - 1.96 * error, abs=3e-4)
    assert high == pytest.approx(found.mean + 1.96 * error, abs=3e-4)


def test_other_queries_are_not_compared(experiment, tmp_path):
    _with_scores(tmp_path / "other", 0, 0.1, {**PROTOCOL, "num_queries": 499})
    arms = compare.load_arms([experiment / "seed_0", tmp_path / "other"])
    assert [arm.label for arm in arms][::2] == ["seed_0: pretrained", "other: pretrained"]
    assert compare.difference(arms[2], arms[0], "mainstay") is None
    assert compare.difference(arms[1], arms[0], "mainstay") is not None


def test_the_command_prints_spreads_and_writes_a_page(experiment, capsys):
    command.main(["compare", str(experiment)])
    told = capsys.readouterr().out
    values = [
        json.loads(path.read_text())["metrics"]["map"]
        for path in sorted(experiment.glob("seed_*/records/hardened/mainstay.json"))
    ]
    low, high = 100 * min(values), 100 * max(values)
    assert f"{100 * np.mean(values):.1f} % ({low:.1f}-{high:.1f})" in told
    page = Page.read(experiment / "comparison.html")
    assert f"{100 * np.mean(values):.1f} %" in page.text and "Above pretrained" in page.text


def test_a_run_for_each_seed_ends_in_a_comparison(tmp_path, monkeypatch, capsys):
    seen = []

    def run(config, folder):
        seen.append((config.seed, str(folder)))
        _with_scores(tmp_path / "x" / f"seed_{config.seed}", config.seed, 0.1)

    monkeypatch.setattr("saat_jax.pipeline.run", run)
    workdir = str(tmp_path / "x")
    main.main(["--config", "demo:smoke", "--workdir", workdir, "--seeds", "4", "7"])
    assert seen == [(4, f"{workdir}/seed_4"), (7, f"{workdir}/seed_7")]
    assert "Mean of 2 seeds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["--config", "audit:pdq", "--workdir", workdir, "--seeds", "4"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no records"):
        compare.load_arms([tmp_path])
    with pytest.raises(ValueError, match="has the run been started"):
        compare.load_arms([tmp_path / "absent"])
