"""The training loop: schedules, optimizers, logs, and starting again after any kind of stop."""

import functools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saat_jax import checkpoints, datasets, defenses, networks, objectives, optimizers, training
from tests import golden

NUM_EPOCHS, STEPS_PER_EPOCH = 8, 5
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
METADATA = {"identity": {"model": {"num_bits": 8, "widths": [4, 8]}, "seed": 0}}
BATCH = {"image": np.zeros((8, 1))}


def _description(name):
    """The words of a formula, which hold its constants."""
    vectors = json.loads((golden.FOLDER / "formulas.json").read_text())["vectors"]
    return next(vector["description"] for vector in vectors if vector["id"] == name)


# --- schedules ---


def test_epoch_schedule_worked_by_hand():
    # Six epochs of two steps: each third has two epochs, and its drop comes one epoch late.
    schedule = optimizers.epoch_schedule(0.5, num_epochs=6, steps_per_epoch=2)
    expected = [0.5] * 6 + [0.05] * 4 + [0.005] * 2
    np.testing.assert_allclose([schedule(step) for step in range(12)], expected)


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_epoch_schedule_of_fewer_than_three_epochs(num_epochs):
    schedule = optimizers.epoch_schedule(0.5, num_epochs=num_epochs, steps_per_epoch=3)
    np.testing.assert_allclose([schedule(step) for step in range(3 * num_epochs)], 0.5)


def test_golden_formula_hash_lr():
    formula = golden.formula("hash_lr")
    for num_epochs in formula.inputs["n_epochs"]:
        schedule = optimizers.epoch_schedule(1.0, num_epochs=num_epochs, steps_per_epoch=7)
        for offset in (0, 6):
            rates = [schedule(7 * epoch + offset) for epoch in range(num_epochs)]
            expected = formula.expected[str(num_epochs)]
            np.testing.assert_allclose(rates, expected, rtol=formula.tolerance)


def test_milestone_schedule_worked_by_hand():
    # Of 6 steps one half is 3, three quarters is 4.5, which no step reaches.
    schedule = optimizers.milestone_schedule(2.0, num_steps=6)
    np.testing.assert_allclose([schedule(step) for step in range(6)], [2, 2, 2, 0.2, 0.2, 0.2])


def test_golden_saat_lr_schedule():
    case = golden.load("saat_lr_schedule")
    for name, expected in case.arrays.items():
        schedule = optimizers.milestone_schedule(float(expected[0]), num_steps=len(expected))
        rates = [schedule(step) for step in range(len(expected))]
        np.testing.assert_allclose(rates, expected, rtol=case.tolerance("rel"), err_msg=name)


def test_golden_formula_multistep_milestones():
    formula, words = golden.formula("multistep_milestones"), _description("multistep_milestones")
    batch_size = int(re.search(r"batch (\d+)", words).group(1))
    for data, size in formula.inputs["N"].items():
        steps_per_epoch = formula.expected[data]["steps_per_epoch"]
        assert -(-size // batch_size) == steps_per_epoch
        for defence, num_epochs in re.findall(r"(\w+) \((\d+) ep\)", words):
            num_steps = int(num_epochs) * steps_per_epoch
            schedule = optimizers.milestone_schedule(1.0, num_steps=num_steps)
            rates = np.array([schedule(step) for step in range(num_steps)])
            drops = np.flatnonzero(np.diff(rates)) + 1
            expected = [at for at, fires in formula.expected[data][defence] if fires]
            np.testing.assert_allclose(drops, expected, atol=formula.tolerance)


def test_make_schedule_knows_its_names():
    make = functools.partial(
        optimizers.make_schedule, learning_rate=0.2, num_epochs=4, steps_per_epoch=3
    )
    steps = range(12)
    epochs = optimizers.epoch_schedule(0.2, num_epochs=4, steps_per_epoch=3)
    assert [make("thirds")(s) for s in steps] == [epochs(s) for s in steps]
    milestones = optimizers.milestone_schedule(0.2, num_steps=12)
    assert [make("milestones")(s) for s in steps] == [milestones(s) for s in steps]
    assert {make("constant")(s) for s in steps} == {0.2}
    # Half a cosine: 0.2, then half of it midway, then zero.
    np.testing.assert_allclose([make("cosine")(s) for s in (0, 6, 12)], [0.2, 0.1, 0], atol=1e-9)
    np.testing.assert_allclose(make("cosine")(4), 0.15)
    names = r"\['constant', 'cosine', 'half_linear', 'milestones', 'thirds'\]"
    with pytest.raises(ValueError, match=f"unknown schedule 'step'; expected one of {names}"):
        make("step")


# --- optimizers ---


def _minimise(optimizer, start, gradients):
    """The parameter after each gradient."""
    params, path = jnp.float32(start), []
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params))
    return path


def test_golden_formula_sgd_momentum():
    formula = golden.formula("sgd_momentum")
    rate, momentum, decay = map(
        float,
        re.search(r"lr=(\S+) momentum=(\S+) wd=(\S+)", _description("sgd_momentum")).groups(),
    )
    gradients = formula.inputs["grads"]
    optimizer = optimizers.make_optimizer(
        "sgd", lambda _: rate, num_steps=len(gradients), momentum=momentum, weight_decay=decay
    )
    formula.assert_close(
        _minimise(optimizer, formula.inputs["p0"], gradients), formula.expected["p"]
    )


def test_adam_follows_pytorch():
    gradients, rate, decay = [0.5, -0.2, 0.1, 0.4], 0.1, 0.01
    value, first, second, expected = 1.0, 0.0, 0.0, []
    for step, gradient in enumerate(gradients, start=1):
        total = gradient + decay * value
        first = 0.9 * first + 0.1 * total
        second = 0.999 * second + 0.001 * total**2
        root = (second / (1 - 0.999**step)) ** 0.5
        value -= rate * first / (1 - 0.9**step) / (root + 1e-8)
        expected.append(value)
    optimizer = optimizers.make_optimizer("adam", lambda _: rate, num_steps=4, weight_decay=decay)
    np.testing.assert_allclose(_minimise(optimizer, 1.0, gradients), expected, rtol=1e-5)


def test_the_rate_follows_the_schedule_and_is_kept_beyond_it():
    optimizer = optimizers.make_optimizer("sgd", [0.5, 0.25, 0.125].__getitem__, num_steps=3)
    path = _minimise(optimizer, 0.0, [1, 1, 1, 1, 1])
    np.testing.assert_allclose(-np.diff([0, *path]), [0.5, 0.25, 0.125, 0.125, 0.125])


def test_the_rate_of_an_optimizer_that_is_not_used_in_every_step():
    rates = [0.5, 0.25, 0.125, 0.0625, 0.03125]
    optimizer = optimizers.make_optimizer("sgd", rates.__getitem__, num_steps=5, updates=[0, 2, 3])
    path = _minimise(optimizer, 0.0, [1, 1, 1])
    np.testing.assert_allclose(-np.diff([0, *path]), [0.5, 0.125, 0.0625])


def test_make_optimizer_knows_its_names():
    with pytest.raises(ValueError, match=r"unknown optimizer 'lamb'; .* \['adam', 'sgd'\]"):
        optimizers.make_optimizer("lamb", lambda _: 0.1, num_steps=1)


# --- the loop, with an update that is easy to follow ---


def _toy_state():
    variables = {"params": {"w": np.float32(0)}}
    return defenses.init_state(variables, optax.sgd(1.0), objectives.State())


def _toy_update(state, batch, *, axis_name, bad_step=None):
    """The loss is the number of updates done before, or NaN at `bad_step`."""
    loss = state.step.astype(jnp.float32)
    loss = jnp.where(state.step == bad_step, jnp.nan, loss) if bad_step is not None else loss
    params = {"w": state.params["w"] + 1}
    return state.replace(step=state.step + 1, params=params), {"loss": loss}


def _toy_train(folder, update=_toy_update, *, state=None, batches_from=None, **changes):
    options = {
        "folder": folder,
        "steps_per_epoch": 5,
        "num_epochs": 2,
        "schedule": lambda step: 1 / (1 + step),
        "metadata": METADATA,
        "log_every": 3,
        "checkpoint_every": 4,
        "progress": False,
    } | changes
    num_steps = options["steps_per_epoch"] * options["num_epochs"]
    batches_from = batches_from or (lambda step: [BATCH] * (num_steps - step))
    return training.train(update, state or _toy_state(), batches_from, **options)


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_log_lines_worked_by_hand(tmp_path):
    state = _toy_train(tmp_path)
    # The loss of step n is n - 1; a line holds the mean since the line before. Lines come every
    # 3 steps, and with the checkpoints: every 4 steps and at the end of each epoch of 5.
    steps = [3, 4, 5, 6, 8, 9, 10]
    losses = [1, 3, 4, 5, 6.5, 8, 9]
    assert _lines(tmp_path) == [
        {"step": step, "epoch": step / 5, "loss": loss, "learning_rate": 1 / step}
        for step, loss in zip(steps, losses, strict=True)
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert state.step == 10 and state.params["w"] == 10
    assert all(isinstance(x, np.ndarray | np.generic) for x in jax.tree.leaves(state))
    assert training.variables_of(state) == {"params": {"w": 10}, "batch_stats": {}}


def test_evaluations_choose_the_best_checkpoint(tmp_path):
    asked = []

    def evaluate(state):
        asked.append(float(state.params["w"]))
        return {"map": {0: 0.5, 10: 0.4, 20: 0.4, 25: 0.2}[asked[-1]]}

    _toy_train(tmp_path, num_epochs=5, evaluate=evaluate, evaluate_every=2)
    # Before the first, after the second and the fourth epoch, and after the last.
    assert asked == [0, 10, 20, 25]
    assert [line["map"] for line in _lines(tmp_path) if "map" in line] == [0.5, 0.4, 0.4, 0.2]
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints") as saved:
        best, latest = saved.restore(best=True), saved.restore()
    assert best.step == 10 and best.state["params"]["w"] == 10
    assert latest.step == 25
    expected = METADATA | {"best_map": 0.4, "num_steps": 25, "pending": []}
    assert best.metadata == expected | {"step": 10}
    assert latest.metadata == expected | {"step": 25}


@pytest.mark.parametrize(("bad_step", "steps"), [(0, "1 and 3"), (6, "6 and 8"), (9, "9 and 10")])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_steps(tmp_path, bad_step, steps):
    # Lines come with step 3, the epoch's end 5, the checkpoint 8 and the end 10.
    update = functools.partial(_toy_update, bad_step=bad_step)
    log_every = 3 if bad_step == 0 else 100
    with pytest.raises(FloatingPointError, match=f"loss.*nan.* between steps {steps}: training"):
        _toy_train(tmp_path, update, log_every=log_every, checkpoint_every=8)
    assert all(np.isfinite(line["loss"]) for line in _lines(tmp_path))
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints") as saved:
        found = saved.restore()
    assert found is None or found.step <= bad_step


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = _toy_train(tmp_path)
    lines = _lines(tmp_path)

    def no_batches(step):
        raise AssertionError(f"batches were asked for from step {step}")

    again = _toy_train(tmp_path, batches_from=no_batches)
    chex.assert_trees_all_equal(again, first)
    assert _lines(tmp_path) == lines


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"model": {"num_bits": 8, "widths": [4, 8]}, "seed": 1}, "seed = 0, this run has 1"),
        (
            {"model": {"num_bits": 16, "widths": [4, 9]}, "seed": 1},
            "model.num_bits = 8, this run has 16",
        ),
        (
            {"model": {"num_bits": 8, "widths": [4, 8], "depth": 3}, "seed": 0},
            "model.depth = None, this run has 3",
        ),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, identity, message):
    _toy_train(tmp_path)
    lines = _lines(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} was made with {message}")):
        _toy_train(tmp_path, metadata={"identity": identity})
    assert _lines(tmp_path) == lines
    # A tuple is the list that JSON makes of it.
    same = {"model": {"num_bits": 8, "widths": (4, 8)}, "seed": 0}
    assert _toy_train(tmp_path, metadata={"identity": same}).step == 10


def test_another_network_in_the_same_folder_is_refused_by_its_setting(tmp_path):
    _toy_train(tmp_path)
    state = _toy_state().replace(params={"w": np.zeros(3, np.float32), "b": np.float32(0)})
    identity = {"model": {"num_bits": 16, "widths": [4, 8]}, "seed": 0}
    with pytest.raises(ValueError, match=r"was made with model.num_bits = 8, this run has 16"):
        _toy_train(tmp_path, state=state, metadata={"identity": identity})


def test_speed_is_logged_beside_the_metrics(tmp_path):
    _toy_train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    # As many as of the metrics, but where no step was made since a checkpoint.
    assert [line["step"] for line in lines] == [3, 4, 5, 6, 8, 9, 10]
    assert all(line["images_per_second"] > 0 and line["step_ms"] > 0 for line in lines)
    assert training.last_speed(tmp_path)["devices"] == "8 x CPU"
    assert not any("step_ms" in line for line in _lines(tmp_path))
    (tmp_path / "speed.jsonl").write_text("damaged\n")
    assert training.last_speed(tmp_path) == {} == training.last_speed(tmp_path / "absent")


def test_some_steps_are_traced(tmp_path):
    _toy_train(tmp_path, profile=(2, 3))
    assert [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]
    # A range beyond the end, or one that a resumed run has behind it, stops nothing.
    _toy_train(tmp_path, num_epochs=3, profile=(2, 3))
    _toy_train(tmp_path, num_epochs=4, profile=(18, 99))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("garbage", "is no JSON"), ("[3, 4]", "must be an object"), ('{"loss": 1}', "lacks 'step'")],
)
def test_a_damaged_line_of_the_log_is_named(tmp_path, line, message):
    _toy_train(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join([*lines, '{"step": 11, "ep']))
    with pytest.raises(ValueError, match=f"{path}, line 2.*{message}.*; mend the line, or delete"):
        _toy_train(tmp_path, num_epochs=3)
    path.unlink()
    assert _toy_train(tmp_path, num_epochs=3).step == 15


def test_checkpoints_of_another_version_or_step_are_skipped(tmp_path, caplog):
    _toy_train(tmp_path)
    latest = tmp_path / "checkpoints" / "latest"
    assert training.reached(tmp_path) == 10
    (latest / "10").rename(latest / "12")
    assert _toy_train(tmp_path).step == 10
    assert f"{latest / '12'}: it is of step 10: it was renamed" in caplog.text
    assert sorted(path.name for path in latest.iterdir()) == ["10", "8"]
    with training.open_checkpoints(tmp_path, read_only=False) as saved:
        saved.save(14, _toy_state(), {})
    assert _toy_train(tmp_path).step == 10
    assert "its metadata lacks ['identity', 'step', 'num_steps']: it is of" in caplog.text


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match="divide evenly over the 8 local devices, got 12 rows"):
        _toy_train(tmp_path, batches_from=lambda step: [{"image": np.zeros((12, 1))}])


def test_metrics_log_drops_a_half_line_and_what_comes_again(tmp_path):
    log = training.MetricsLog(tmp_path / "run")
    for step in (2, 4, 6):
        log.write(step, step / 3, {"loss": step / 10})
    log.close()
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 8, "ep')
    log = training.MetricsLog(tmp_path / "run", first_step=4)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
    log.write(6, 2, {"map": 0.5})
    log.close()
    assert _lines(tmp_path / "run") == [
        {"step": 2, "epoch": 0.6667, "loss": 0.2},
        {"step": 4, "epoch": 1.3333, "loss": 0.4},
        {"step": 6, "epoch": 2, "map": 0.5},
    ]


# --- stopped and started again, with the real update ---


def small_run(folder, *, delay=0.0, fail_at=None, mapping="pmap"):
    """Trains SAAT on a few digits; `delay` seconds a batch, and an error before step `fail_at`."""
    data = datasets.load_digits(image_size=16, num_query=1, num_database=36, num_train=36)
    model = networks.ConvNet(8, widths=(4, 8))
    schedule = optimizers.make_schedule(
        "milestones", 0.05, num_epochs=NUM_EPOCHS, steps_per_epoch=STEPS_PER_EPOCH
    )
    optimizer = optimizers.make_optimizer(
        "sgd", schedule, num_steps=NUM_STEPS, momentum=0.9, weight_decay=1e-4
    )
    codes = np.random.default_rng(0).choice([-1.0, 1.0], (36, 8)).astype(np.float32)
    bank = objectives.CodeBank(codes, data.train.labels)
    variables = networks.init_variables(model, jax.random.key(0), image_size=16)

    def batches_from(start_step):
        batches = datasets.train_batches(
            data.train,
            batch_size=8,
            seed=0,
            num_epochs=NUM_EPOCHS,
            start_step=start_step,
            image_size=16,
            resize=None,
        )
        for step, batch in enumerate(batches, start=start_step):
            time.sleep(delay)
            if step == fail_at:
                raise OSError("the disk is gone")
            yield batch

    def evaluate(state):
        return {"map": float(np.abs(state.params["hash"]["kernel"]).mean())}

    return training.train(
        defenses.make_saat_update(
            model,
            objectives.create_objective("dph"),
            optimizer,
            seed=0,
            epsilon=8 / 255,
            step_size=2 / 255,
            num_steps=2,
        ),
        defenses.init_state(variables, optimizer, objectives.State(bank=bank), bank),
        batches_from,
        folder=folder,
        steps_per_epoch=STEPS_PER_EPOCH,
        num_epochs=NUM_EPOCHS,
        schedule=schedule,
        metadata=METADATA,
        evaluate=evaluate,
        evaluate_every=2,
        log_every=3,
        checkpoint_every=4,
        progress=False,
        mapping=mapping,
    )


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory):
    """Every run compiles the same program: once is enough."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    old = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", folder)
    yield folder
    jax.config.update("jax_compilation_cache_dir", old)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(final state, log) of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    state = small_run(folder)
    assert state.step == NUM_STEPS
    return state, (folder / "metrics.jsonl").read_bytes()


def _start(folder, compiled):
    """The same run in another process, slowed down so that it can be caught at any moment."""
    code = "import sys; from tests import training_test as t; t.small_run(sys.argv[1], delay=0.06)"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled},
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_a_checkpoint(process, folder):
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/latest/[0-9]")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_fails_and_goes_on_ends_with_the_same_bits(tmp_path, unbroken):
    # Before the first checkpoint; on one; just before an epoch's end; twice at one place.
    for fail_at in (2, 8, 24, 24):
        with pytest.raises(OSError, match="the disk is gone"):
            small_run(tmp_path, fail_at=fail_at)
    chex.assert_trees_all_equal(small_run(tmp_path), unbroken[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == unbroken[1]


def test_shard_map_gives_the_bits_of_pmap(tmp_path, unbroken):
    with pytest.raises(OSError, match="the disk is gone"):
        small_run(tmp_path, fail_at=18, mapping="shard_map")
    chex.assert_trees_all_equal(small_run(tmp_path, mapping="shard_map"), unbroken[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == unbroken[1]


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, unbroken, compiled_programs):
    process = _start(tmp_path, compiled_programs)
    _wait_for_a_checkpoint(process, tmp_path)
    moment = random.uniform(0, 1.5)
    print(f"killed {moment:.3f} s after the first checkpoint")
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.stderr.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "epo')
    chex.assert_trees_all_equal(small_run(tmp_path), unbroken[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == unbroken[1]


def test_sigterm_saves_and_leaves_with_a_word(tmp_path, unbroken, compiled_programs):
    process = _start(tmp_path, compiled_programs)
    _wait_for_a_checkpoint(process, tmp_path)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    message = re.search(rf"stopped by SIGTERM at step (\d+) of {NUM_STEPS}, saved", errors)
    assert message, errors
    stopped_at = int(message.group(1))
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints") as saved:
        assert saved.restore().step == stopped_at
    chex.assert_trees_all_equal(small_run(tmp_path), unbroken[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == unbroken[1]


@pytest.mark.parametrize(
    ("kind", "name", "code"), [(signal.SIGTERM, "SIGTERM", 1), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_signals_are_ours_during_training_alone(tmp_path, capfd, kind, name, code):
    before = signal.getsignal(kind)

    def batches(step):
        while True:
            yield BATCH
            os.kill(os.getpid(), kind)

    message = f"stopped by {name} at step 2 of 10, saved"
    with pytest.raises(training.Interrupted, match=message) as stop:
        _toy_train(tmp_path, batches_from=batches)
    assert stop.value.code == code and message in capfd.readouterr().err
    assert signal.getsignal(kind) is before
    assert _toy_train(tmp_path).step == 10
    # It stopped between two log lines, and logs what a run without a stop does.
    _toy_train(tmp_path / "unbroken")
    assert _lines(tmp_path) == _lines(tmp_path / "unbroken")


def test_ctrl_c_again_ends_at_once():
    code = """
import os, signal
from saat_jax import training
with training.StopSignal() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == signal.SIGINT
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGINT and not process.stdout
    assert process.stderr == "\nstopping once the state is saved; Ctrl-C again ends at once\n"


def test_who_is_deaf_to_ctrl_c_stays_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with training.StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.received
    finally:
        signal.signal(signal.SIGINT, before)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    def update(state, batch, *, axis_name):
        state, metrics = _toy_update(state, batch, axis_name=axis_name)
        # The loss of step 4 is taken before its update spoils the parameters.
        spoilt = jnp.where(state.step == 4, jnp.nan, state.params["w"])
        return state.replace(params={"w": spoilt}), metrics

    with pytest.raises(FloatingPointError, match=r"\['w'\] is NaN or infinite after step 4"):
        _toy_train(tmp_path, update)
    with checkpoints.CheckpointFolder(tmp_path / "checkpoints", read_only=True) as saved:
        assert saved.restore() is None
