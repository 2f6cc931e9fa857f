"""What the backup's job must be, as functions that find what is not."""

from typing import Any

from tests.charts.rendering import Object


def _jobs(found: list[Object]) -> list[tuple[Object, dict[str, Any]]]:
    """(CronJob, its pods' template) of each."""
    return [
        (one, one["spec"]["jobTemplate"]["spec"]["template"])
        for one in found
        if one["kind"] == "CronJob"
    ]


def backups_are_one_at_a_time(found: list[Object]) -> list[str]:
    """Jobs of which two could run at once, that never end, or that are tried again for ever."""
    wrong = []
    for one, template in _jobs(found):
        job = one["spec"]["jobTemplate"]["spec"]
        if (
            one["spec"].get("concurrencyPolicy") != "Forbid"
            or not 60 <= one["spec"].get("startingDeadlineSeconds", 0) <= 86_400
            or not 0 < job.get("activeDeadlineSeconds", 0) <= 86_400
            or job.get("backoffLimit", 6) > 1
            or template["spec"].get("restartPolicy") != "Never"
        ):
            wrong.append(one["metadata"]["name"])
    return wrong


def backups_are_where_their_volume_is(found: list[Object]) -> list[str]:
    """Jobs that mount the volume of another pod and could be put on another machine than it."""
    wrong = []
    for one, template in _jobs(found):
        claims = {
            each["persistentVolumeClaim"]["claimName"]
            for each in template["spec"]["volumes"]
            if "persistentVolumeClaim" in each
        }
        for owner in (each for each in found if each["kind"] == "StatefulSet"):
            if not claims & _claims_of(owner):
                continue
            labels = owner["spec"]["template"]["metadata"]["labels"]
            affinity = template["spec"].get("affinity", {}).get("podAffinity", {})
            if owner["spec"]["replicas"] != 1 or not any(
                term["topologyKey"] == "kubernetes.io/hostname"
                and term["labelSelector"]["matchLabels"] == owner["spec"]["selector"]["matchLabels"]
                and term["labelSelector"]["matchLabels"].items() <= labels.items()
                for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
            ):
                wrong.append(one["metadata"]["name"])
    return wrong


def _claims_of(owner: Object) -> set[str]:
    spec = owner["spec"]
    own = {
        f"{each['metadata']['name']}-{owner['metadata']['name']}-{number}"
        for each in spec.get("volumeClaimTemplates", [])
        for number in range(spec["replicas"])
    }
    return own | {
        each["persistentVolumeClaim"]["claimName"]
        for each in spec["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in each and not each["persistentVolumeClaim"].get("readOnly")
    }


def backups_reach_the_state_and_nothing_else(found: list[Object]) -> list[str]:
    """Jobs that lack a way to the database or the store, that have another one, or are reached."""
    policies = {
        one["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component"): one["spec"]
        for one in found
        if one["kind"] == "NetworkPolicy"
    }
    if None not in policies:
        return []
    wrong = []
    for one, template in _jobs(found):
        own = policies.get(template["metadata"]["labels"]["app.kubernetes.io/component"], {})
        used = {each["name"] for each in template["spec"]["containers"][0]["env"]}
        needed = len({"FEDDP_STORAGE__DATABASE_URL", "AWS_ACCESS_KEY_ID"} & used)
        ways = [
            way
            for way in own.get("egress", [])
            if {"protocol": "TCP", "port": 15012} not in way.get("ports", [])
        ]
        coordinators = policies["coordinator"].get("egress", [])
        if (
            "ingress" in own
            or len(ways) != needed
            or any(way not in coordinators or len(way.get("ports", [])) != 1 for way in ways)
        ):
            wrong.append(one["metadata"]["name"])
    return wrong
