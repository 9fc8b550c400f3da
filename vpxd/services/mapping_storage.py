"""vpxd's storage values to the messages of the Storage service, and back."""

from proto.vim.v1 import vm_config_pb2
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import InvalidArgument
from vpxd.inventory.records import StoragePolicy, VmPolicies
from vpxd.inventory.values import DiskFormat
from vpxd.operations.storage_disks import NewDisk
from vpxd.operations.storage_policies import Fit, VmCompliance
from vpxd.services.mapping import finding


def policy_from_wire(message: api.StoragePolicy) -> StoragePolicy:
    """A policy, not yet checked. :raises InvalidArgument: a number that is no disk format."""
    try:
        formats = tuple(DiskFormat(number) for number in message.formats)
    except ValueError as error:
        raise InvalidArgument("a policy names formats that disks can have", argument="formats") from error
    return StoragePolicy(
        name=message.name,
        description=message.description,
        required_tags=tuple(message.required_tags),
        forbidden_tags=tuple(message.forbidden_tags),
        shared=message.shared,
        formats=formats,
        min_free_percent=message.min_free_percent,
    )


def policy(record: StoragePolicy) -> api.StoragePolicy:
    """A policy."""
    return api.StoragePolicy(
        name=record.name,
        description=record.description,
        required_tags=record.required_tags,
        forbidden_tags=record.forbidden_tags,
        shared=record.shared,
        formats=[vm_config_pb2.DiskFormat.ValueType(value) for value in record.formats],
        min_free_percent=record.min_free_percent,
    )


def policy_fit(fit: Fit) -> api.PolicyFit:
    """A datastore, and what speaks against it."""
    return api.PolicyFit(
        datastore=fit.datastore.id,
        datastore_name=fit.datastore.name,
        findings=[finding(entry, "") for entry in fit.findings],
    )


def vm_policies_from_wire(message: api.SetVmPoliciesRequest) -> VmPolicies:
    """The policies that a VM is to have; it by its id or name."""
    return VmPolicies(message.vm, message.home_policy, tuple(message.disk_policies.items()))


def vm_policies(compliance: VmCompliance) -> api.VmPolicies:
    """A VM's policies and its compliance."""
    return api.VmPolicies(
        vm=compliance.vm.id,
        home_policy=compliance.policies.home,
        disk_policies=dict(compliance.policies.disks),
        findings=[finding(entry, compliance.vm.host) for entry in compliance.findings],
    )


def new_disk(message: api.CreateDiskRequest | api.ImportDiskRequest) -> NewDisk:
    """A disk to be made."""
    return NewDisk(message.path, message.host, message.capacity_bytes, message.format)
