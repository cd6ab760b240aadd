"""Which keys of the configuration a reload leaves as they are, and what applies them."""

from __future__ import annotations

from operator import attrgetter

from lxcfs_py.config import KEYS, Config

RESTARTED, STOPPED_AND_STARTED = "restarted", "stopped and started"

APPLIED_WHEN = {
    "mountpoint": STOPPED_AND_STARTED,
    "fuse.engine": STOPPED_AND_STARTED,
    "fuse.options": STOPPED_AND_STARTED,
    "fuse.threads": RESTARTED,
    "metrics.listen": RESTARTED,
    "metrics.containers": RESTARTED,
}
"""What is to be done with the service, by the key; a reload applies all others."""


def differing(one: Config, other: Config) -> list[str]:
    """Return the keys that two configurations have otherwise."""
    return [key for key in KEYS if attrgetter(key)(one) != attrgetter(key)(other)]


def keep(old: Config, new: Config) -> tuple[Config, list[str]]:
    """Return what a reload takes of a new configuration, and a remark for each key that it does not take."""
    late = [key for key in differing(old, new) if key in APPLIED_WHEN]
    remarks = [f"{key} stays what it is until the service is {APPLIED_WHEN[key]}" for key in late]
    return new.with_settings((key, attrgetter(key)(old)) for key in late), remarks
