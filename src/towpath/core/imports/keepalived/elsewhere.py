# SPDX-License-Identifier: Apache-2.0
"""What keepalived has that services have not: what does it instead."""

from __future__ import annotations

_VRRP = (
    "addresses aren't moved between hosts: announce the VIPs from several load balancers (BGP, "
    "ECMP), or go on running keepalived for its vrrp_* blocks alone"
)
_TRACKED = "nothing is tracked; let what announces the VIPs look at the agent's health (/v1/health)"
_STATIC = "the host's own network configuration has it (systemd-networkd, ifupdown, ip)"
_PROCESS = "is keepalived's own"

TOP = {
    "global_defs": "mail, names, scripts and logging of keepalived's own; metrics and their alerts "
    "tell what changes (docs/observability.md)",
    "vrrp_instance": _VRRP,
    "vrrp_sync_group": _VRRP,
    "vrrp_script": _TRACKED,
    "vrrp_track_process": _TRACKED,
    "vrrp_track_file": _TRACKED,
    "track_file": _TRACKED,
    "track_group": _TRACKED,
    "garp_group": _VRRP,
    "linkbeat_interfaces": _TRACKED,
    "linkbeat_use_polling": _TRACKED,
    "interface_up_down_delays": _TRACKED,
    "bfd_instance": "a routing daemon has it (bird, FRR)",
    "static_ipaddress": _STATIC,
    "static_routes": _STATIC,
    "static_rules": _STATIC,
    "SSL": "checks by https have no certificate of their own",
    "net_namespace": "run the agent in it: ip netns exec NAME towpath agent",
    "net_namespace_ipvs": "run the agent in it: ip netns exec NAME towpath agent",
    "namespace_with_ipsets": _PROCESS,
    "instance": _PROCESS,
    "use_pid_dir": _PROCESS,
    "child_wait_time": _PROCESS,
}
"""At the outermost level."""

_SCRIPT = "no script is run; alerts are made of metrics such as towpath_backend_health, and the log"
_MAIL = "no mail is sent; alerts are made of metrics such as towpath_backend_health"
_SILENT = ""

VIRTUAL = {
    "alpha": "a backend gets flows until its first check has failed often enough",
    "omega": "when the agent ends nothing is run, and the kernel goes on balancing",
    "quorum": "backends that are up get flows, however few they are",
    "hysteresis": "backends that are up get flows, however few they are",
    "quorum_up": _SCRIPT,
    "quorum_down": _SCRIPT,
    "sorry_server": "no other server takes over when all are down; an own service with that server "
    "as its backend could take the VIP",
    "sorry_server_inhibit": _SILENT,
    "sorry_server_lvs_method": _SILENT,
    "ha_suspend": "checks go on wherever the VIP is",
    "smtp_alert": _MAIL,
    "warmup": _SILENT,
    "snmp_name": _SILENT,
    "ip_family": _SILENT,
    "hashed": _SILENT,
}
"""Of a virtual server. Nothing is said of what has no effect by itself, or none on packets."""

REAL = {
    "alpha": VIRTUAL["alpha"],
    "notify_up": _SCRIPT,
    "notify_down": _SCRIPT,
    "smtp_alert": _MAIL,
    "warmup": _SILENT,
    "snmp_name": _SILENT,
}
"""Of a real server."""
