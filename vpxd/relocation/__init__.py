"""What a relocation asks for and what the VM is afterwards: the Migrate wizard's specification, resolved; all pure."""
