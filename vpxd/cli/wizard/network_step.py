"""The step that asks for the networks: the destination's port group for each of the VM's, or for each NIC."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vpxd.cli.wizard.choices import port_groups_of
from vpxd.cli.wizard.dialog import Option
from vpxd.cli.wizard.offers import NetworkOffer, destinations, networks
from vpxd.cli.wizard.steps import Tour
from vpxd.cli.wording import or_dash


@dataclass(frozen=True)
class _Networks:
    """What there is to choose from."""

    offers: Sequence[NetworkOffer]
    hosts: int


async def ask_networks(tour: Tour) -> None:
    """Which port groups the NICs are on afterwards."""
    choices = tour.choices
    hosts = destinations(
        await tour.world.hosts(), await tour.world.clusters(), choices.destination_host, choices.cluster
    )
    there = _Networks(networks(hosts), len(hosts))
    modes = [
        Option(False, ("by port group", "all NICs of a port group go to the same one")),
        Option(True, ("advanced", "each NIC has its own destination")),
    ]
    per_nic = await tour.dialog.choose("Map the networks", ("NETWORKS", ""), modes, choices.per_nic)
    tour.choices = replace(tour.choices, per_nic=per_nic)
    if per_nic:
        for nic in choices.vm.config.nics:
            plug = "connected" if nic.connected else "disconnected"
            question = f"Destination network of NIC {nic.key} ({nic.mac}, {plug}, on {or_dash(nic.network)})"
            chosen = await _ask(tour, there, question, nic.network, tour.choices.nics.get(nic.key, ""))
            tour.choices = replace(tour.choices, nics={**tour.choices.nics, nic.key: chosen})
        return
    for group in port_groups_of(choices.vm):
        of_it = [str(nic.key) for nic in choices.vm.config.nics if nic.network == group]
        question = f"Destination network of {group} (NIC {', '.join(of_it)})"
        chosen = await _ask(tour, there, question, group, tour.choices.networks.get(group, ""))
        tour.choices = replace(tour.choices, networks={**tour.choices.networks, group: chosen})


async def _ask(tour: Tour, there: _Networks, question: str, present: str, chosen: str) -> str:
    options = [
        Option(
            offer.name,
            (
                offer.name,
                ", ".join(str(segment) for segment in offer.segments),
                f"{offer.hosts} of {there.hosts}" if there.hosts > 1 else "",
                "as it is called now" if offer.name == present else "",
            ),
        )
        for offer in there.offers
    ]
    offered = present in {offer.name for offer in there.offers}
    if not offered:  # a NIC that is unplugged may keep it: only a warning stands against that
        options.append(Option(present, (or_dash(present), "", "", "keep it: it isn't there")))
    current = chosen or (present if offered else None)
    columns = ("PORT GROUP", "SEGMENT", "HOSTS" if there.hosts > 1 else "", "")
    return await tour.dialog.choose(question, columns, options, current)
