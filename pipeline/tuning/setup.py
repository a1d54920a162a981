"""What a search is about, from params.yaml, the prepared data and the command's options."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import PreparedData, read_json, stage_folder
from pipeline.experiment import Experiment
from pipeline.params import TuneSettings
from pipeline.tuning.budget.amount import Budget, parse_budget, show_amount
from pipeline.tuning.budget.costs import Caps, counted_costs
from pipeline.tuning.budget.plan import Plan
from pipeline.tuning.search.space import Candidate, draw_candidates
from pipeline.tuning.trial.driver import trial_folder
from pipeline.tuning.trial.journal import Journal
from yolov7.settings import TrainSettings
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.spec_files import spec_to_json
from yolov7.training.job import TrainJob

_NO_EFFECT = {"budget", "trials", "epochs", "trials_per_gpu"}  # on which models there are and how they are chosen


@dataclass(frozen=True)
class Setup:
    """A search before it begins. `base_name`: a variant or a spec; `train`: the settings of every trial's training."""

    settings: TuneSettings
    budget: Budget
    base_name: str
    base: ModelSpec
    train: TrainSettings
    data: PreparedData
    overrides: Mapping[str, Any]  # under `train` of the base
    candidates: tuple[Candidate, ...]  # within the caps that are known beforehand
    left_out: int  # above them

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when other models could be trained, or in another way."""
        settings = self.settings.model_dump_json(exclude=_NO_EFFECT)
        parts = (spec_to_json(self.base), settings, self.train.model_dump_json(), self.data.content_hash)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """What the fingerprint is of, to say what differs."""
        chosen = self.settings.model_dump(mode="json", exclude=_NO_EFFECT)
        return {**chosen, "base": self.base_name, "data": self.data.content_hash, "fingerprint": self.fingerprint}

    def job(self, candidate: Candidate, plan: Plan, *, folder: Path, loader_workers: int) -> TrainJob:
        """The training of one model."""
        changes = {
            "epochs": plan.epochs,
            "validate_every": plan.validate_every,
            "image_size": candidate.image_size,
            "loader_workers": loader_workers,
        }
        return TrainJob(
            spec_json=candidate.spec_json,
            settings=self.train.model_copy(update=changes),
            seed=self.settings.seed,
            data_folder=stage_folder("prepare").resolve(),
            data_hash=self.data.content_hash,
            run_folder=trial_folder(folder, candidate.key).resolve(),
        )


def make_setup(experiment: Experiment, settings: TuneSettings) -> Setup:
    """Resolves the base and draws the models; ValueError in one line for what cannot work."""
    budget = parse_budget(settings.budget)
    base_name = settings.base or next(iter(experiment.variants))
    variant = experiment.base(base_name)
    base, train = variant.spec, variant.train
    sizes = settings.image_sizes or (train.image_size,)
    _check_sizes(base, sizes)
    data = read_json(stage_folder("prepare") / "dataset.json", PreparedData, made_by="prepare")
    if "val" not in data.splits:
        raise ValueError("data.val is null, but tune compares models by their AP on val; name a split, then prepare")
    own = base.head.auxiliary is not None
    with counted_costs(len(data.class_names)) as cost_of:
        drawn = draw_candidates(
            base,
            settings,
            image_sizes=sizes,
            auxiliary=(own, not own) if settings.auxiliary else (own,),
            cost_of=cost_of,
            generator=random.Random(settings.seed),
        )
    kept = Caps(settings.max_gflops, settings.max_params, None).keep(drawn)
    return Setup(settings, budget, base_name, base, train, data, variant.overrides, kept, len(drawn) - len(kept))


def check_resume(setup: Setup, journal: Journal, *, folder: Path, resume: bool) -> None:
    """ValueError where a search was interrupted here that this command would not go on with."""
    if not journal.exists():
        return
    if not resume:
        raise ValueError(
            f"a search was interrupted here ({show_amount('seconds', journal.seconds())} used); "
            f"`yolov7 tune --resume` goes on with it, `rm -r {folder}` forgets it"
        )
    before, now = journal.header()["search"], setup.describe()
    if before != now:
        changed = [name for name in now if before.get(name) != now[name] and name != "fingerprint"]
        what = f"{changed[0]} was {before.get(changed[0])}" if changed else "the base or its training was another"
        raise ValueError(
            f"the search that was interrupted here is another: {what}; "
            f"give the same options, or `rm -r {folder}` to forget it"
        )


def _check_sizes(base: ModelSpec, sizes: tuple[int, ...]) -> None:
    stride = max(shape.stride for shape in infer_shapes(base).values())
    for size in sizes:
        if size % stride:
            nearest = max(1, round(size / stride)) * stride
            raise ValueError(
                f"tune.image_sizes: {size} must be a multiple of {stride}, the base's largest stride; try {nearest}"
            )
