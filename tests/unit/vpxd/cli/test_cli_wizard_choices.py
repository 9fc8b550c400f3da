"""What the wizard's choices make: steps that apply, requests, and what there is to choose from."""

from dataclasses import replace

from proto.vim.v1 import fault_pb2, host_pb2, task_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from vpxd.cli.wizard.choices import Choices, FilesChoice, MigrationType, Step
from vpxd.cli.wizard.offers import datastores, destinations, networks


def _vm(number: int = 1, *, on: bool = True, nics: int = 1) -> inventory_pb2.Vm:
    power = host_pb2.POWER_STATE_POWERED_ON if on else host_pb2.POWER_STATE_POWERED_OFF
    config = vm_config_pb2.VmConfig(
        disks=[vm_config_pb2.VirtualDisk(key=2000), vm_config_pb2.VirtualDisk(key=2001)],
        nics=[vm_config_pb2.NetworkAdapter(key=4000 + index, network="LAN") for index in range(nics)],
    )
    return inventory_pb2.Vm(id=f"vm-{number}", host_name="esx01", power_state=power, config=config)


def _steps(choices: Choices) -> list[Step]:
    return [step for step in Step if choices.applies(step)]


def test_steps_are_those_that_have_something_to_ask() -> None:
    live = Choices(vm=_vm(), host="esx02")
    assert Step.STORAGE not in _steps(live)
    assert Step.NETWORKS in _steps(live)
    both_here = Choices(vm=_vm(), type=MigrationType.BOTH, host="esx01")
    assert Step.NETWORKS not in _steps(both_here)
    storage = Choices(vm=_vm(), type=MigrationType.STORAGE)
    assert _steps(storage) == [Step.VM, Step.TYPE, Step.STORAGE, Step.PRIORITY, Step.REVIEW]
    cold = Choices(vm=_vm(on=False, nics=0), host="esx02")
    assert _steps(cold) == [Step.VM, Step.TYPE, Step.COMPUTE, Step.REVIEW]


def test_request_of_an_earlier_step_has_only_what_is_chosen_up_to_it() -> None:
    choices = Choices(
        vm=_vm(),
        type=MigrationType.BOTH,
        cluster="Cluster",
        files=FilesChoice("local", 1, "gold"),
        networks={"LAN": "DMZ"},
        options=spec_pb2.MigrationOptions(priority=spec_pb2.PRIORITY_HIGH, streams=4),
    )
    compute = choices.request(Step.COMPUTE)
    assert compute.spec == service_pb2.RelocateSpec(cluster="Cluster")
    assert (compute.options.priority, compute.options.streams) == (spec_pb2.PRIORITY_DEFAULT, 4)
    storage = choices.request(Step.STORAGE)
    assert storage.spec == service_pb2.RelocateSpec(
        cluster="Cluster", datastore="local", format=vm_config_pb2.DISK_FORMAT_THIN, policy="gold"
    )
    assert choices.request(Step.NETWORKS).spec.networks[0].network == "DMZ"
    assert choices.request(Step.PRIORITY).options.priority == spec_pb2.PRIORITY_HIGH


def test_findings_that_a_later_step_can_mend_are_settled_later() -> None:
    def finding(group: task_pb2.FindingGroup.ValueType, fault: int = 0) -> task_pb2.Finding:
        return task_pb2.Finding(group=group, fault=fault_pb2.Fault(type=fault))  # type: ignore[arg-type]

    both = Choices(vm=_vm(), type=MigrationType.BOTH, host="esx02")
    datastore, network = finding(task_pb2.FINDING_GROUP_DATASTORE), finding(task_pb2.FINDING_GROUP_NETWORK)
    of_host = finding(task_pb2.FINDING_GROUP_HOST, fault_pb2.FAULT_TYPE_INVALID_ARGUMENT)
    assert both.settled_later(Step.COMPUTE, datastore)
    assert both.settled_later(Step.COMPUTE, network)
    assert not both.settled_later(Step.COMPUTE, of_host)
    assert replace(both, host="esx01").settled_later(Step.COMPUTE, of_host)
    assert not replace(both, host="esx01").settled_later(Step.STORAGE, of_host)
    assert not both.settled_later(Step.STORAGE, datastore)
    assert both.settled_later(Step.STORAGE, network)
    assert not both.settled_later(Step.NETWORKS, network)
    compute = Choices(vm=_vm(), host="esx02")
    assert not compute.settled_later(Step.COMPUTE, datastore)


def test_request_has_nothing_of_steps_that_no_longer_apply() -> None:
    choices = Choices(
        vm=_vm(), type=MigrationType.BOTH, host="esx02", files=FilesChoice("local"), networks={"LAN": "DMZ"}
    )
    assert choices.request().spec.datastore == "local"
    storage = Choices(vm=_vm(), type=MigrationType.STORAGE, host="esx02", networks={"LAN": "DMZ"})
    assert storage.request().spec == service_pb2.RelocateSpec(host="esx01")


def test_another_vm_forgets_what_belongs_to_the_disks_and_nics_of_the_first() -> None:
    choices = Choices(vm=_vm(), host="esx02", per_disk=True, disks={2000: FilesChoice("a")}, nics={4000: "b"})
    assert choices.of_vm(_vm()).disks
    other = choices.of_vm(_vm(2))
    assert (other.host, other.per_disk, other.disks, other.nics) == ("esx02", False, {}, {})


def _host(name: str, cluster: str, free: int, uuid: str, *groups: str) -> inventory_pb2.Host:
    info = host_pb2.HostInfo(
        datastores=[
            host_pb2.Datastore(name="local", uuid=uuid, free_bytes=free, capacity_bytes=10, accessible=True),
            host_pb2.Datastore(name="gone", uuid="g", accessible=False),
        ],
        port_groups=[host_pb2.PortGroup(name=group, segment_id=7) for group in groups],
    )
    return inventory_pb2.Host(name=name, cluster=cluster, info=info)


def test_offers_of_a_cluster_are_those_of_any_host_with_the_least_free_space() -> None:
    hosts = [
        _host("a", "c1", 5, "u1", "LAN"),
        _host("b", "c1", 3, "u2", "LAN", "DMZ"),
        _host("c", "c2", 1, "u3"),
    ]
    clusters = [inventory_pb2.Cluster(id="c1", name="One")]
    there = destinations(hosts, clusters, "", "One")
    assert [host.name for host in there] == ["a", "b"]
    assert [host.name for host in destinations(hosts, clusters, "c", "")] == ["c"]
    (store,) = datastores(there)
    assert (store.name, store.uuids, store.free_bytes, store.hosts) == ("local", ("u1", "u2"), 3, 2)
    assert [(one.name, one.segments, one.hosts) for one in networks(there)] == [
        ("DMZ", (7,), 1),
        ("LAN", (7,), 2),
    ]
    ids = {"u1": "datastore-1", "u2": "datastore-2"}
    assert store.misfit(ids, [{"datastore-2": "no tag"}, {"datastore-2": "no tag"}]) == "no tag"
    assert store.misfit(ids, [{"datastore-9": "no tag"}]) == ""
