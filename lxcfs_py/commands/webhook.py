"""lxcfs-py webhook: the files in the pods of a Kubernetes cluster."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Optional

from lxcfs_py import log
from lxcfs_py.commands.common import CommandError, add_config, load_config, new_command, path_given
from lxcfs_py.linux import address
from lxcfs_py.runtimes import bind_snippets

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "webhook",
        _webhook,
        "add the enabled files to the pods of a Kubernetes cluster",
        "Serve a mutating admission webhook over HTTPS. At the path /all a pod gets the files unless its label or "
        "annotation lxcfs.py/views is none, at /opt-in only where that is all; /healthz and /metrics are for the "
        "cluster's own use.\n\nIt needs the Python packages aiohttp, cryptography and prometheus-client.",
        [
            ("lxcfs-py webhook --self-signed lxcfs-py-webhook", "in a pod of the Service of that name"),
            ("lxcfs-py webhook --certificate tls.crt tls.key --dry-run", "with your own certificate; log only"),
        ],
    )
    pair = parser.add_mutually_exclusive_group(required=True)
    pair.add_argument(
        "--certificate",
        nargs=2,
        metavar=("FILE", "KEY"),
        type=path_given("certificate or key: name a file"),
        help="serve with this, read anew when it changes",
    )
    pair.add_argument(
        "--self-signed",
        metavar="NAME",
        type=_service_given,
        help="make and renew one for the Service of that name, keep it in the Secret and put its authority into the "
        "MutatingWebhookConfiguration of that name",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_address_given,
        default=":8443",
        help="default: port 8443 of all addresses",
    )
    parser.add_argument("--dry-run", action="store_true", help="change no pod, and log what would be changed")
    add_config(parser)


def _address_given(text: str) -> tuple[Optional[str], int]:
    """Return host, None for all addresses, and port. argparse.ArgumentTypeError for what can be none."""
    try:
        return address.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"nothing can listen at {text!r}; allowed: :PORT, {address.ALLOWED}") from None


def _service_given(text: str) -> str:
    """Return the name of a Service, a DNS label. argparse.ArgumentTypeError for what can be none."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", text):
        allowed = "up to 63 letters, digits and dashes, all small, such as lxcfs-py-webhook"
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a Service: give {allowed}")
    return text


def _webhook(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    try:
        import asyncio

        from lxcfs_py.webhook import certificates, cluster, server
        from lxcfs_py.webhook.rotation import Rotation
    except ImportError as error:
        raise CommandError(
            "webhook needs the Python packages aiohttp, cryptography and prometheus-client (Debian: python3-aiohttp, "
            f"python3-cryptography, python3-prometheus-client): {error}"
        ) from None
    config = load_config(options.config)
    log.to_stderr(config.log.level)
    host, port = options.listen
    served = certificates.Served()
    if options.self_signed is not None:
        follow = Rotation(cluster.in_pod(), options.self_signed, served).follow()
    else:
        follow = certificates.follow_files(served, *options.certificate)
    volumes = bind_snippets.kubernetes_volumes(bind_snippets.binds_of(config))
    syscalls = config.kubernetes.syscalls == "pods"
    asyncio.run(server.serve(host, port, served, follow, volumes, options.dry_run, syscalls))
    return 0
