"""A Ray on this machine, which nobody else can reach."""

import logging
import os
import secrets
from pathlib import Path

from jobs.cluster.package import python_path
from jobs.ray_session import OBJECT_STORE_BYTES

# Nothing listens beyond this machine, and Ray answers only who knows the token. The user's values
# for a cluster do not apply here.
PRIVATE = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: bind to the loopback address
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


def start_ray(folder: Path, cpus: int) -> None:
    """Start Ray on this machine, with its files in a private folder.

    Args:
        folder: The private folder.
        cpus: Number of CPUs that Ray may assign.
    """
    os.environ |= PRIVATE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        _temp_dir=str(folder),
    )
