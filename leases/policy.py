"""Every number of a lease's life, with its unit in its name."""

from __future__ import annotations

from dataclasses import dataclass, fields

TTL_SECONDS_LONGEST_URL = 7 * 24 * 3600  # SigV4 refuses X-Amz-Expires above seven days.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """The settings of the lease machinery; `problems()` says what does not fit together."""

    ttl_default_seconds: float = 300
    ttl_min_http_seconds: float = 1
    lease_life_max_seconds: float = 24 * 3600
    grace_seconds: float = 0
    share_guard_seconds: float = 2
    share_guard_ratio: float = 0.05
    share_ttl_min_seconds: float = 30
    renew_factor: float = 1.25
    upload_limit_seconds: float = 600
    upload_margin_seconds: float = 10
    upload_grace_seconds: float = 900
    claim_limit_seconds: float = 30
    delete_timeout_seconds: float = 10
    reap_workers: int = 4
    # A larger one saves nothing on a disk, and what falls due meanwhile waits for it
    # (`make bench ARGS=replicas`).
    reap_batch: int = 250
    sweep_interval_seconds: float = 30
    reconcile_interval_seconds: float = 300
    look_ahead_seconds: float = 0.5
    non_owner_delay_seconds: float = 0.3
    retry_first_seconds: float = 1
    retry_factor: float = 2
    retry_jitter_ratio: float = 0.25
    retry_cap_seconds: float = 3600
    stuck_after_attempts: int = 8
    circuit_pause_seconds: float = 1
    # Longest pause and longest probe together: work resumes within ten seconds of an outage's end.
    circuit_pause_seconds_max: float = 5
    circuit_probe_seconds: float = 3
    clock_skew_max_seconds: float = 2
    leases_per_repo_max: int = 0
    leases_max: int = 0
    transient_bytes_per_repo_max: int = 0
    transient_bytes_max: int = 0
    alarm_enabled: bool = True

    @property
    def ttl_max_seconds(self) -> float:
        """The longest TTL anybody gets."""
        return min(self.lease_life_max_seconds, TTL_SECONDS_LONGEST_URL)

    def share_guard(self, ttl_seconds: float) -> float:
        """How much life a shared pack must still have, in seconds, for a caller's TTL."""
        return max(self.share_guard_seconds, self.share_guard_ratio * ttl_seconds)

    def problems(self) -> list[str]:
        """One sentence for each setting, or pair of settings, that cannot work."""
        found = [
            f"{field.name} must be above zero"
            for field in fields(self)
            if field.name not in _MAY_BE_ZERO and not float(getattr(self, field.name)) > 0
        ]
        found += [
            f"{name} must not be negative" for name in _MAY_BE_ZERO if getattr(self, name) < 0
        ]
        for broken, sentence in (
            (
                self.delete_timeout_seconds >= self.claim_limit_seconds,
                "delete_timeout_seconds must be below claim_limit_seconds, or two workers delete",
            ),
            (
                self.upload_margin_seconds >= self.upload_limit_seconds,
                "upload_margin_seconds must be below upload_limit_seconds, or nothing uploads",
            ),
            (
                self.ttl_default_seconds > self.ttl_max_seconds,
                "ttl_default_seconds must not exceed lease_life_max_seconds (or 7 days)",
            ),
            (
                self.circuit_pause_seconds > self.circuit_pause_seconds_max,
                "circuit_pause_seconds must not exceed circuit_pause_seconds_max",
            ),
            (self.renew_factor < 1, "renew_factor must be at least 1: renewing never shortens"),
            (self.retry_factor < 1, "retry_factor must be at least 1"),
            (self.retry_jitter_ratio >= 1, "retry_jitter_ratio must be below 1"),
        ):
            if broken:
                found.append(sentence)
        return found


_MAY_BE_ZERO = frozenset(
    {"grace_seconds", "share_guard_ratio", "non_owner_delay_seconds", "retry_jitter_ratio"}
    | {"share_guard_seconds", "share_ttl_min_seconds", "alarm_enabled"}
    | {"leases_per_repo_max", "leases_max", "transient_bytes_per_repo_max", "transient_bytes_max"}
)
