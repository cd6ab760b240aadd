"""`lxcfs-py webhook`: from its options to a server that runs."""

from __future__ import annotations

import argparse
import asyncio
from typing import Optional

from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import address
from lxcfs_py.runtimes import bind_snippets
from lxcfs_py.webhook import certificates, cluster, server
from lxcfs_py.webhook.rotation import Rotation


class WebhookError(LxcfsError):
    """Why there is no webhook: one sentence for the operator."""


def run(options: argparse.Namespace, config: Config) -> int:
    """Serve until told to stop; return the exit code. WebhookError."""
    host, port = _address(options.listen)
    served = certificates.Served()
    volumes = bind_snippets.kubernetes_volumes(bind_snippets.binds_of(config))
    try:
        if options.self_signed is not None:
            follow = Rotation(cluster.in_pod(), options.self_signed, served).follow()
        else:
            follow = certificates.follow_files(served, *options.certificate)
        syscalls = config.kubernetes.syscalls == "pods"
        asyncio.run(server.serve(host, port, served, follow, volumes, options.dry_run, syscalls))
    except (certificates.CertificateError, cluster.ClusterError, server.ServerError) as error:
        raise WebhookError(str(error)) from None
    return 0


def _address(listen: str) -> tuple[Optional[str], int]:
    try:
        return address.parse(listen)
    except ValueError:
        raise WebhookError(
            f"--listen {listen}: nothing can listen there; allowed: :PORT, HOST:PORT, [IPV6]:PORT"
        ) from None
