"""The data of a VM's disks: copied in bulk, and mirrored while the guest writes."""
