"""Records to rows of the database and back, one pair of functions per kind."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from vpxd.inventory import model, records
from vpxd.inventory.values import DiskFormat, PowerState
from vpxd.wire import host_info_from_json, host_info_to_json, vm_config_from_json, vm_config_to_json

R = TypeVar("R")


def naive_utc(moment: datetime) -> datetime:
    """As the database keeps times: UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def aware_utc(moment: datetime) -> datetime:
    """The inverse of `naive_utc`."""
    return moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Table(Generic[R]):
    """How one kind of record is kept. `key` is the value of the row's primary key."""

    row: type[model.Base]
    key: Callable[[R], str]
    to_row: Callable[[R], model.Base]
    from_row: Callable[[Any], R]


def _host_row(host: records.Host) -> model.HostRow:
    return model.HostRow(
        id=host.id,
        name=host.name,
        cluster=host.cluster,
        address=host.address,
        info=host_info_to_json(host.info),
    )


def _vm_row(vm: records.Vm) -> model.VmRow:
    return model.VmRow(
        id=vm.id,
        uuid=vm.uuid,
        name=vm.name,
        host=vm.host,
        home=vm.home,
        power_state=vm.power_state.value,
        failure=vm.failure,
        config=vm_config_to_json(vm.config),
    )


def _vm(row: model.VmRow) -> records.Vm:
    return records.Vm(
        row.id, row.host, row.home, PowerState(row.power_state), vm_config_from_json(row.config), row.failure
    )


def _migration_row(entry: records.MigrationEntry) -> model.MigrationRow:
    return model.MigrationRow(
        task=entry.task,
        migration_id=entry.migration_id,
        vm=entry.vm,
        source=entry.source,
        destination=entry.destination,
        live=entry.live,
        completing=entry.completing,
        files=entry.files,
        canceling=entry.canceling,
        terms=_terms_json(entry.terms),
    )


def _migration(row: model.MigrationRow) -> records.MigrationEntry:
    return records.MigrationEntry(
        task=row.task,
        migration_id=row.migration_id,
        vm=row.vm,
        source=row.source,
        destination=row.destination,
        live=row.live,
        completing=row.completing,
        files=row.files,
        terms=_terms(json.loads(row.terms)),
        canceling=row.canceling,
    )


def _terms_json(terms: records.MigrationTerms) -> str:
    policies = terms.policies
    return json.dumps(
        {
            "home": terms.home,
            "config": vm_config_to_json(terms.config) if terms.config is not None else "",
            "policies": [policies.vm, policies.home, policies.disks] if policies is not None else None,
            "copied": terms.copied,
            "touched": terms.touched,
            "priority": int(terms.priority),
            "unheard": terms.unheard,
        }
    )


def _terms(kept: dict[str, Any]) -> records.MigrationTerms:
    config, policies = kept.get("config"), kept.get("policies")
    return records.MigrationTerms(
        home=kept.get("home", ""),
        config=vm_config_from_json(config) if config else None,
        policies=records.VmPolicies(policies[0], policies[1], _pairs(policies[2])) if policies else None,
        copied=_pairs(kept.get("copied", ())),
        touched=_pairs(kept.get("touched", ())),
        priority=kept.get("priority", 0),
        unheard=tuple(kept.get("unheard", ())),
    )


def _pairs(kept: Any) -> tuple[Any, ...]:
    return tuple(tuple(pair) for pair in kept)


def _policy_row(policy: records.StoragePolicy) -> model.StoragePolicyRow:
    requirements = {
        "required_tags": policy.required_tags,
        "forbidden_tags": policy.forbidden_tags,
        "shared": policy.shared,
        "formats": policy.formats,
        "min_free_percent": policy.min_free_percent,
    }
    return model.StoragePolicyRow(
        name=policy.name, description=policy.description, requirements=json.dumps(requirements)
    )


def _policy(row: model.StoragePolicyRow) -> records.StoragePolicy:
    requirements = json.loads(row.requirements)
    return records.StoragePolicy(
        name=row.name,
        description=row.description,
        required_tags=tuple(requirements["required_tags"]),
        forbidden_tags=tuple(requirements["forbidden_tags"]),
        shared=requirements["shared"],
        formats=tuple(DiskFormat(number) for number in requirements["formats"]),
        min_free_percent=requirements["min_free_percent"],
    )


def _rule_row(rule: records.AffinityRule) -> model.AffinityRuleRow:
    return model.AffinityRuleRow(
        key=rule.key,
        cluster=rule.cluster,
        name=rule.name,
        kind=int(rule.kind),
        vms=json.dumps(rule.vms),
        hosts=json.dumps(rule.hosts),
        mandatory=rule.mandatory,
        enabled=rule.enabled,
    )


def _rule(row: model.AffinityRuleRow) -> records.AffinityRule:
    return records.AffinityRule(
        cluster=row.cluster,
        name=row.name,
        kind=records.RuleKind(row.kind),
        vms=tuple(json.loads(row.vms)),
        hosts=tuple(json.loads(row.hosts)),
        mandatory=row.mandatory,
        enabled=row.enabled,
    )


def _vm_policies(row: model.VmPoliciesRow) -> records.VmPolicies:
    disks = json.loads(row.disks)
    return records.VmPolicies(row.vm, row.home, tuple((int(key), disks[key]) for key in disks))


TABLES: dict[type, Table[Any]] = {
    records.Datacenter: Table(
        model.DatacenterRow,
        lambda record: record.id,
        lambda record: model.DatacenterRow(id=record.id, name=record.name),
        lambda row: records.Datacenter(row.id, row.name),
    ),
    records.Cluster: Table(
        model.ClusterRow,
        lambda record: record.id,
        lambda record: model.ClusterRow(
            id=record.id, name=record.name, datacenter=record.datacenter, evc_mode=record.evc_mode
        ),
        lambda row: records.Cluster(row.id, row.name, row.datacenter, row.evc_mode),
    ),
    records.Host: Table(
        model.HostRow,
        lambda record: record.id,
        _host_row,
        lambda row: records.Host(row.id, row.name, row.cluster, row.address, host_info_from_json(row.info)),
    ),
    records.Datastore: Table(
        model.DatastoreRow,
        lambda record: record.id,
        lambda record: model.DatastoreRow(
            id=record.id,
            name=record.name,
            uuid=record.uuid,
            capacity_bytes=record.capacity_bytes,
            tags=json.dumps(record.tags),
        ),
        lambda row: records.Datastore(
            row.id, row.name, row.uuid, row.capacity_bytes, tuple(json.loads(row.tags))
        ),
    ),
    records.Network: Table(
        model.NetworkRow,
        lambda record: record.id,
        lambda record: model.NetworkRow(id=record.id, name=record.name, segment_id=record.segment_id),
        lambda row: records.Network(row.id, row.name, row.segment_id),
    ),
    records.Vm: Table(model.VmRow, lambda record: record.id, _vm_row, _vm),
    records.Enrollment: Table(
        model.EnrollmentRow,
        lambda record: record.host_name,
        lambda record: model.EnrollmentRow(
            host_name=record.host_name, address=record.address, joined_at=naive_utc(record.joined_at)
        ),
        lambda row: records.Enrollment(row.host_name, row.address, aware_utc(row.joined_at)),
    ),
    records.JoinToken: Table(
        model.JoinTokenRow,
        lambda record: record.digest,
        lambda record: model.JoinTokenRow(
            digest=record.digest,
            host_name=record.host_name,
            expires_at=naive_utc(record.expires_at),
            used=record.used,
        ),
        lambda row: records.JoinToken(row.digest, row.host_name, aware_utc(row.expires_at), row.used),
    ),
    records.MigrationEntry: Table(model.MigrationRow, lambda record: record.task, _migration_row, _migration),
    records.StoragePolicy: Table(model.StoragePolicyRow, lambda record: record.name, _policy_row, _policy),
    records.VmPolicies: Table(
        model.VmPoliciesRow,
        lambda record: record.vm,
        lambda record: model.VmPoliciesRow(
            vm=record.vm, home=record.home, disks=json.dumps(dict(record.disks))
        ),
        _vm_policies,
    ),
    records.AffinityRule: Table(model.AffinityRuleRow, lambda record: record.key, _rule_row, _rule),
}
