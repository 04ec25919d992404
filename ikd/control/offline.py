"""Shell. What `ikctl` can say from the files alone: check them, show the policy, explain a packet."""

from __future__ import annotations

from pathlib import Path

from ikd.control import rule_views
from ikd.control.protocol import ControlError, Json
from policy.engine import Policy
from policy.load import PolicyError
from policy.load import load as load_policy


class Files:
    """A configuration directory, read anew for every question."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self, *, only_policy: bool) -> Json:
        """Every complaint and every warning about the policy, or about all files."""
        try:
            policy, warnings = self._policy_only() if only_policy else self._everything()
        except PolicyError as error:
            return {"complaints": list(error.complaints), "warnings": [], "rules": 0}
        return {"complaints": [], "warnings": warnings, "rules": len(policy.rules)}

    def policy(self, rule: str = "") -> Json:
        """The rules as they would be in force, or one of them; raises `ControlError`."""
        answer = rule_views.policy(self._loaded())
        if not rule:
            return answer
        chosen = [one for one in answer["rules"] if one["name"] == rule]
        if not chosen:
            raise rule_views.no_such_rule(rule, [one["name"] for one in answer["rules"]])
        return answer | {"rules": chosen}

    def explain(self, source: str, destination: str, service: str) -> Json:
        """Which rule would decide a packet; raises `ControlError`."""
        from ikd import network

        return rule_views.explain(self._loaded(), source, destination, service, network.addresses())

    def _loaded(self) -> Policy:
        try:
            return self._policy_only()[0]
        except PolicyError as error:
            raise ControlError(
                "configuration",
                "\n".join(error.complaints),
                "correct the file; ikctl policy check tells more",
            ) from None

    def _policy_only(self) -> tuple[Policy, list[str]]:
        from ikd import loading

        policy = load_policy(self.directory, loading.keywords(self.directory))
        return policy, list(policy.warnings)

    def _everything(self) -> tuple[Policy, list[str]]:
        from ikd import loading

        try:
            found = loading.load(self.directory)
        except loading.ConfigurationError as error:
            raise PolicyError(error.complaints) from None
        return found.policy, list(found.warnings)
