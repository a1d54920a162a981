"""Resolve what a search is about: parameters, prepared data, weights and options become frozen values."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts.files import RUNS, read_json, stage_folder
from pipeline.artifacts.prepared import fit_to_prepared
from pipeline.artifacts.reports import PreparedData
from pipeline.experiment import Experiment
from pipeline.params import TuneSettings
from pipeline.tuning.budget.amount import Budget, parse_budget, show_amount
from pipeline.tuning.budget.costs import counted_costs, within_caps
from pipeline.tuning.budget.plan import TrialPlan
from pipeline.tuning.search.space import Candidate, draw_candidates
from pipeline.tuning.trial.driver import trial_folder
from pipeline.tuning.trial.journal import Journal
from yolov7.errors import ArtifactError, SettingError
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import spec_to_json
from yolov7.training.job import TrainJob

FOLDER = RUNS / ".search"  # the state of a search; a variant's name cannot start with a dot

# Settings that change neither which models there are nor how they are chosen and trained.
_NO_EFFECT = {"budget", "trials", "epochs", "trials_per_gpu"}


@dataclass(frozen=True)
class Setup:
    """What a search is about, before it starts.

    Attributes:
        settings: The settings `tune` with the options of the command.
        budget: The budget of the settings.
        base_name: The variant or the spec that is scaled.
        base_job: The training of the base itself; trials train in the same way.
        data: The prepared data.
        overrides: The settings that the base states under `train`.
        candidates: The models that may be trained: those within the caps that are known before a measurement.
        excluded: How many models exceed the caps.
    """

    settings: TuneSettings
    budget: Budget
    base_name: str
    base_job: TrainJob
    data: PreparedData
    overrides: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    excluded: int

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change if other models could be trained, or if they train differently."""
        settings = self.settings.model_dump_json(exclude=_NO_EFFECT)
        return hashlib.sha256(f"{settings}\n{self.base_job.fingerprint}".encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """Return what the fingerprint depends on, so that a message can name what differs."""
        settings = self.settings.model_dump(mode="json", exclude=_NO_EFFECT)
        job = self.base_job
        content = {"base": self.base_name, "data": job.data_hash, "weights": job.weights_hash}
        return {**settings, **content, "fingerprint": self.fingerprint}

    def trial_job(self, candidate: Candidate, plan: TrialPlan, *, loader_workers: int) -> TrainJob:
        """Return the training of one model.

        Args:
            candidate: The model.
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
                "settings": self.base_job.settings.model_copy(update=changes),
                "run_folder": trial_folder(FOLDER, candidate.key).resolve(),
            }
        )


def make_setup(experiment: Experiment, settings: TuneSettings) -> Setup:
    """Resolve the base, its training and its data, and draw the models.

    Args:
        experiment: The resolved content of params.yaml.
        settings: The settings `tune` with the options of the command.

    Raises:
        UserError: If a setting, the base, the data or the weights cannot be used.
    """
    budget = parse_budget(settings.budget)
    base_name = settings.base or next(iter(experiment.variants))
    variant = experiment.base(base_name)
    base, train = variant.spec, variant.train
    sizes = settings.image_sizes or (train.image_size,)
    _check_sizes(base, sizes)
    data = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    if "val" not in data.splits:
        raise SettingError(
            "data.val is null, but tune compares models by their AP on val; name a split, then run `yolov7 prepare`"
        )
    if variant.weights_hash == "missing":
        raise ArtifactError(f"train.weights={train.weights} does not exist; name a weight file (.safetensors)")
    train = fit_to_prepared(train).settings
    job = TrainJob(
        spec_json=spec_to_json(base),
        settings=train,
        seed=settings.seed,
        data_folder=stage_folder("prepare").resolve(),
        data_hash=data.content_hash,
        weights_hash=variant.weights_hash,
        run_folder=FOLDER.resolve(),
    )
    own = bool(base.head.taps)
    with counted_costs(len(data.class_names)) as cost_of:
        drawn = draw_candidates(
            base,
            settings,
            image_sizes=sizes,
            auxiliary=(own, not own) if settings.auxiliary else (own,),
            cost_of=cost_of,
            generator=random.Random(settings.seed),
        )
    kept = within_caps(drawn, max_gflops=settings.max_gflops, max_params=settings.max_params)
    return Setup(settings, budget, base_name, job, data, variant.overrides, kept, excluded=len(drawn) - len(kept))


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
    if not resume:
        raise SettingError(
            f"a search was interrupted after {show_amount('seconds', journal.seconds())}; continue it with "
            f"`yolov7 tune --resume`, or discard it with `rm -r {FOLDER}`"
        )
    before, now = journal.header()["search"], setup.describe()
    if before != now:
        changed = [name for name in now if before.get(name) != now[name] and name != "fingerprint"]
        what = f"its {changed[0]} was {before.get(changed[0])}" if changed else "its base or its training was different"
        raise SettingError(
            f"the interrupted search differs from this one: {what}; give the same settings and options to continue "
            f"it, or discard it with `rm -r {FOLDER}`"
        )


def _check_sizes(base: ModelSpec, sizes: tuple[int, ...]) -> None:
    stride = max(shape.stride for shape in infer_shapes(base).values())
    for size in sizes:
        if size % stride:
            nearest = max(1, round(size / stride)) * stride
            raise SettingError(
                f"tune.image_sizes: {size} must be a multiple of {stride}, the base's largest stride; try {nearest}"
            )
