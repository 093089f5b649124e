"""Does the items of a plan, one after the other, in this process."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from launch.reproduce.estimate import cost
from launch.reproduce.plan import Config, Job, PlanItem, attacks_of, is_done, mark_done
from saat_jax import parallel, pipeline, reports
from saat_jax.pipeline import Run


class Runner:
    """Runs items one after the other, in this process.

    What the items of a run share, its data above all, is made once.
    """

    def __init__(self, job: Job, planned: Sequence[PlanItem]):
        self.job = job
        self._planned = planned
        self._last: tuple[str, Run] | None = None
        self._data: tuple[str, Any] | None = None

    def __call__(self, item: PlanItem) -> None:
        """Does an item's work, unless it is done."""
        with pipeline.locked(self.job.folder(item.run_name)):
            if item.action == "transfer":
                pipeline.transfer(self._transfer_run(item))
                return
            run = self._run(item)
            if item.action == "train":
                pipeline.train_hash(run)
            elif item.action == "harden":
                pipeline.harden(run, item.form)
            else:
                pipeline.judge(run, item.form, item.attacks)
                if jax.process_index() == 0:
                    reports.write_report(run.workdir)

    def _run(self, item: PlanItem) -> Run:
        if self._last is None or self._last[0] != item.run_name:
            # A run compiles programs of its own: those of the last are in the way.
            self._last = None
            jax.clear_caches()
            own = [s for s in self._planned if s.run_name == item.run_name]
            config = self.job.config(
                item.models[0],
                item.seed,
                forms=[s.form for s in own if s.action == "harden"],
                attacks=attacks_of(own),
            )
            self._last = item.run_name, self._with_data(config, self.job.folder(item.run_name))
        return self._last[1]

    def _transfer_run(self, item: PlanItem) -> Run:
        config = self.job.config(item.models[0], item.seed, attacks=item.attacks)
        config["task"] = "transfer"
        config["transfer"] = {
            "models": [
                f"{self.job.folder(self.job.run_name(model, item.seed))}:pretrained"
                for model in item.models
            ]
        }
        return self._with_data(config, self.job.folder(item.run_name))

    def _with_data(self, config: Config, folder: pathlib.Path) -> Run:
        key = json.dumps([config["data"], config["seed"]])
        if self._data is None or self._data[0] != key:
            self._data = key, pipeline.load_data(config)
        return Run(config, folder, self._data[1])


def run_all(job: Job, planned: Sequence[PlanItem], only: str | None) -> list[str]:
    """Runs the items that are not done; returns what failed, in words."""
    mine = [item for item in planned if only in (None, item.run_name)]
    todo = [item for item in mine if not is_done(job, item)]
    # All processes have seen the same before the first one goes on.
    parallel.wait_for_all("plan")
    weights = {item.title: cost(job, item) for item in todo}
    failed: dict[tuple[str, str], str] = {}
    runner, start, spent = Runner(job, planned), time.monotonic(), 0.0
    if jax.process_index() == 0:
        print(f"{len(mine)} stages, {len(mine) - len(todo)} of them done")
    for number, item in enumerate(todo, 1):
        past = time.monotonic() - start
        rest = past * (sum(weights.values()) - spent) / spent if spent else 0
        times = f"{past / 60:.0f} min, about {rest / 60:.0f} left"
        if jax.process_index() == 0:
            print(f"\n[{number}/{len(todo)}] {item.title}; {times}")
        needed = {(job.run_name(model, item.seed), "pretrained") for model in item.models}
        # A model that others need, or records.
        made = item.form if item.action in ("train", "harden") else item.title
        try:
            if broken := failed.keys() & {*needed, (item.run_name, item.form)}:
                raise ValueError(f"{' '.join(min(broken))} failed")
            runner(item)
            if jax.process_index() == 0:
                mark_done(job, item)
        # Out of memory is a RuntimeError.
        except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
            if jax.process_count() > 1:
                # The others may not have failed, and would wait for this one.
                raise
            failed[item.run_name, made] = f"{item.title}: {type(error).__name__}: {error}"
            print(failed[item.run_name, made], file=sys.stderr)
        spent += weights[item.title]
    return list(failed.values())
