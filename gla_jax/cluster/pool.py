"""Shards dealt to Ray's actors. Ray starts the actors, deals, and puts the shard of a lost actor back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gla_jax.distributed.shards import MAX_SHARDS, Shard
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

IMAGES_OF_A_SHARD = 16  # what a lost actor costs at most
MOST_SHARDS = 4096
CPUS_PER_ACTOR = 4  # as many as threads read images
RETRIES = 3  # of a shard whose actor dies: the fourth time it is the shard's own fault
ACCELERATORS = ("GPU", "TPU")
SECONDS_TO_LET_GO = 120.0  # a lost actor's lock may outlive it


@dataclass(frozen=True)
class Cluster:
    """A place to run: Ray's address (None: $RAY_ADDRESS or one of this machine), number of actors, their processors."""

    address: str | None = None
    actors: int | None = None
    cpus_per_actor: int | None = None


def shards_for(images: int) -> list[Shard]:
    """The shards of a run by Ray: small, and the same whatever the cluster, so that a run goes on on another one."""
    count = min(-(-images // IMAGES_OF_A_SHARD), MOST_SHARDS, MAX_SHARDS)
    return [Shard(index, count) for index in range(count)]


def deal(cluster: Cluster, worker: type, arguments: Sequence[Any], tasks: Sequence[tuple]) -> Iterator[Any]:
    """worker(*arguments).work(*task) of every task on some actor, in the order in which they end.

    Raises UserError when Ray is missing, the cluster cannot be reached, or a task fails.
    """
    with _connected(cluster) as ray:
        from ray.util import ActorPool

        count, options = _actors(ray, cluster)
        actor = ray.remote(worker).options(**options, max_restarts=-1, max_task_retries=RETRIES)
        pool = ActorPool([actor.remote(*arguments) for _ in range(min(count, max(len(tasks), 1)))])
        try:
            yield from pool.map_unordered(lambda one, task: one.work.remote(*task), tasks)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, UserError) else None
            raise cause or error from None
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"an actor of Ray ended {RETRIES + 1} times at one shard ({str(error).splitlines()[0][:120]}); run the "
                "same command again, with fewer actors if memory is short."
            ) from None


@contextmanager
def _connected(cluster: Cluster) -> "Iterator[ModuleType]":
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError('Ray is not installed; pip install "gla-jax[ray]".') from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(cluster.address, **quiet, **({} if cluster.address else {"include_dashboard": False}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"Ray's cluster at {cluster.address or 'this machine'} cannot be reached ({reason}); start it with ray "
            "start, or leave out the address."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _actors(ray: "ModuleType", cluster: Cluster) -> tuple[int, dict[str, Any]]:
    """Number of actors and what each needs: one an accelerator, else as many as the processors allow."""
    resources = ray.cluster_resources()
    most_cpus = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
    cpus = cluster.cpus_per_actor or min(CPUS_PER_ACTOR, int(most_cpus) or 1)
    if cpus > most_cpus:
        raise UserError(f"no machine of Ray's cluster has {cpus} processors for an actor; lower --cpus-per-actor.")
    kind = next((name for name in ACCELERATORS if resources.get(name, 0) >= 1), None)
    count = int(resources[kind]) if kind else max(int(resources.get("CPU", 1)) // cpus, 1)
    needs = {"num_gpus": 1} if kind == "GPU" else {"resources": {kind: 1}} if kind else {}
    return cluster.actors or count, {"num_cpus": cpus, **needs}
