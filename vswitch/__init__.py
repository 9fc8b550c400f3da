"""vswitch: a host's virtual switch. One process carries the frames of all port groups, between its VMs and to the
switches of the other hosts."""

import runtime  # noqa: F401  first: it settles what libraries look for at their import
