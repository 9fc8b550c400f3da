"""The host's virtual machines: registry, files, power, and their vmx processes."""
