"""The measurement of `train.batch_size: auto` where the training will run."""

from __future__ import annotations

from pipeline.params import RaySettings
from pipeline.ray.cluster import connect, nodes_alive
from pipeline.ray.environment import cluster_address
from pipeline.ray.local import needs_no_cluster
from pipeline.ray.placement import choose_resources
from yolov7.training.auto_batch import BatchChoice, choose_batch
from yolov7.training.job import TrainJob


def choose_batch_with_ray(job: TrainJob, settings: RaySettings) -> BatchChoice:
    """Find the largest batch on this machine, or with the resources of one worker of the cluster.

    Args:
        job: What will be trained.
        settings: Where it will be trained. The batch is for the fewest workers.

    Returns:
        The choice.

    Raises:
        UserError: If the cluster cannot be reached, or not even one image fits.
    """
    if needs_no_cluster(settings):
        return choose_batch(job)
    import ray

    workers = settings.fewest_workers
    with connect(settings):
        resources = choose_resources(settings, nodes_alive())
        sharing = workers if cluster_address() is None and not resources.gpus else 1
        measure = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(choose_batch)
        choice: BatchChoice = ray.get(measure.remote(job, workers=workers, sharing=sharing))
    return choice
