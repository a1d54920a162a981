"""Resolve what a search is about: parameters, prepared data, weights and options become frozen values."""

from __future__ import annotations

import hashlib
import random
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts.files import RUNS, read_json, stage_folder
from pipeline.artifacts.prepared import fit_to_prepared
from pipeline.artifacts.reports import PreparedData
from pipeline.experiment import Experiment, check_weights
from pipeline.tune_settings import SettingRange, TuneSettings, tune_option
from pipeline.tuning.budget.amount import Budget, parse_budget, show_amount
from pipeline.tuning.budget.costs import counted_costs, within_caps
from pipeline.tuning.budget.plan import TrialPlan
from pipeline.tuning.search.space import Candidate, base_candidate, draw_candidates
from pipeline.tuning.search.train_space import draw_settings, resolve_ranges, with_values
from pipeline.tuning.trial.driver import trial_folder
from pipeline.tuning.trial.journal import Journal
from yolov7.errors import SettingError
from yolov7.spec.graph import ModelSpec, check_image_size
from yolov7.spec.spec_files import spec_to_json
from yolov7.system.settings_base import AUTO_BATCH
from yolov7.training.job import TrainJob

FOLDER = RUNS / ".search"  # the state of a search; a variant's name cannot start with a dot

# Settings that change neither which models there are nor how they are chosen and trained.
_NO_EFFECT = {"budget", "trials", "epochs", "trials_per_gpu"}


OPTIONS = {  # options of the command by the setting that they replace
    name: tune_option(name)
    for name in (
        *("space", "base", "vary", "budget", "trials_per_gpu", "seed"),
        *("max_gflops", "max_params", "max_latency_ms", "rules"),
    )
}


@dataclass(frozen=True)
class Setup:
    """What a search varies, before it starts.

    Attributes:
        settings: The settings `tune` with the options of the command.
        stated: The same settings as params.yaml states them, without options.
        budget: The budget of the settings.
        base_name: The variant or the spec that is scaled, or whose training is varied.
        base_job: The training of the base itself; trials train in the same way, except for what is varied.
        data: The prepared data.
        declared: The base as a variant without its training, as params.yaml states it.
        overrides: The settings that the base states under `train`.
        candidates: The models or settings that may be trained: models are within the caps that are known before a
            measurement.
        excluded: How many models exceed the caps.
    """

    settings: TuneSettings
    stated: TuneSettings
    budget: Budget
    base_name: str
    base_job: TrainJob
    data: PreparedData
    declared: Mapping[str, Any]
    overrides: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    excluded: int

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change if other models could be trained, or if they train differently."""
        settings = self.settings.model_dump_json(exclude=_NO_EFFECT)
        return hashlib.sha256(f"{settings}\n{self.base_job.fingerprint}".encode()).hexdigest()[:12]

    @property
    def ranges(self) -> dict[str, SettingRange]:
        """The ranges of the settings that a search for settings varies."""
        return resolve_ranges(self.settings, self.base_job.settings, self.base_job.spec)

    def describe(self) -> dict[str, Any]:
        """Return what the fingerprint depends on, so that a message can name what differs."""
        settings = self.settings.model_dump(mode="json", exclude=_NO_EFFECT)
        job = self.base_job
        content = {"base": self.base_name, "data": job.data_hash, "weights": job.weights_hash}
        return {**settings, **content, "fingerprint": self.fingerprint}

    def resume_command(self, before: Mapping[str, Any] | None = None) -> str:
        """Return the command that continues a search, with all options that it needs.

        Args:
            before: What `describe` returned for the search; None for this one.
        """
        known = {name: value for name, value in (before or {}).items() if name in TuneSettings.model_fields}
        settings = TuneSettings.model_validate(self.settings.model_dump() | known)
        words = ["yolov7", "tune"]
        for name, option in OPTIONS.items():
            if (value := getattr(settings, name)) != getattr(self.stated, name):
                words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
        return shlex.join([*words, "--resume"])

    def trial_job(self, candidate: Candidate, plan: TrialPlan, *, loader_workers: int) -> TrainJob:
        """Return the training of one candidate.

        Args:
            candidate: The model, or the settings.
            plan: How every trial trains.
            loader_workers: Number of processes that prepare samples.
        """
        changes = {
            "epochs": plan.epochs,
            "validate_every": plan.validate_every,
            "image_size": candidate.image_size,
            "loader_workers": loader_workers,
        }
        return self.base_job.model_copy(
            update={
                "spec_json": candidate.spec_json,
                "settings": with_values(self.base_job.settings, dict(candidate.train)).model_copy(update=changes),
                "run_folder": trial_folder(FOLDER, candidate.key).resolve(),
            }
        )


def make_setup(experiment: Experiment, settings: TuneSettings) -> Setup:
    """Resolve the base, its training and its data, and draw the candidates.

    Args:
        experiment: The resolved content of params.yaml.
        settings: The settings `tune` with the options of the command.

    Raises:
        UserError: If a setting, the base, the data or the weights cannot be used.
    """
    budget = parse_budget(settings.budget)
    settings, stated = (
        each.model_copy(update={"base": each.base or next(iter(experiment.variants))})
        for each in (settings, experiment.tune)
    )
    base_name = str(settings.base)
    variant = experiment.base(base_name)
    base, train = variant.spec, variant.train
    _check_sizes(base, settings.image_sizes)
    if train.batch_size == AUTO_BATCH:
        raise SettingError(
            "train.batch_size=auto cannot be used by a search, whose trainings must be comparable; state a number"
        )
    data = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    if "val" not in data.splits:
        raise SettingError(
            "data.val is null, but tune compares models by their AP on val; name a split, then run `yolov7 prepare`"
        )
    check_weights(variant)
    train = fit_to_prepared(train).settings
    job = TrainJob(
        spec_json=spec_to_json(base),
        settings=train,
        seed=settings.seed,
        data_folder=stage_folder("prepare").resolve(),
        data_hash=data.content_hash,
        weights_hash=variant.weights_hash,
        teacher_hash=variant.teacher_hash,
        run_folder=FOLDER.resolve(),
        own_code=dict(variant.own_code),
    )
    kept, excluded = _draw(settings, job, num_classes=len(data.class_names))
    return Setup(settings, stated, budget, base_name, job, data, variant.declared, variant.overrides, kept, excluded)


def _draw(settings: TuneSettings, base_job: TrainJob, *, num_classes: int) -> tuple[tuple[Candidate, ...], int]:
    """Return the candidates, and how many models exceed the caps."""
    base, train, generator = base_job.spec, base_job.settings, random.Random(settings.seed)
    own = bool(base.head.taps)
    with counted_costs(num_classes) as cost_of:
        if settings.space == "train":
            ranges = resolve_ranges(settings, train, base)
            unscaled = base_candidate(base, image_size=train.image_size, cost_of=cost_of)
            return draw_settings(unscaled, ranges, train, generator), 0
        drawn = draw_candidates(
            base,
            settings,
            image_sizes=settings.image_sizes or (train.image_size,),
            auxiliary=(own, not own) if settings.auxiliary else (own,),
            cost_of=cost_of,
            generator=generator,
        )
    kept = within_caps(drawn, max_gflops=settings.max_gflops, max_params=settings.max_params)
    return kept, len(drawn) - len(kept)


def check_resume(setup: Setup, journal: Journal, *, resume: bool) -> None:
    """Check that an interrupted search, if there is one, is the one that this command continues.

    Args:
        setup: What this command searches.
        journal: The journal of the interrupted search.
        resume: Whether the command was asked to continue it.

    Raises:
        SettingError: If the search was interrupted and is another one, or if the command was not asked to continue it.
    """
    if not journal.exists():
        return
    before, now = journal.header()["search"], setup.describe()
    command = setup.resume_command(before)
    if not resume:
        raise SettingError(
            f"a search was interrupted after {show_amount('seconds', journal.seconds())}; continue it with "
            f"`{command}`, or discard it with `rm -r {FOLDER}`"
        )
    if before != now:
        changed = [name for name in now if before.get(name) != now[name] and name != "fingerprint"]
        what = f"its {changed[0]} was {before.get(changed[0])}" if changed else "its base or its training was different"
        remedy = "give the same settings and options to continue it"
        if changed and set(changed) <= OPTIONS.keys():
            remedy = f"continue it with `{command}`"
        raise SettingError(
            f"the interrupted search differs from this one: {what}; {remedy}, or discard it with `rm -r {FOLDER}`"
        )


def _check_sizes(base: ModelSpec, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        check_image_size(base, size, what=f"tune.image_sizes: {size}", stride_of="the base's largest stride")
