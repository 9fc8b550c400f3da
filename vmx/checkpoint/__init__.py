"""The checkpoint: device and CPU state of a stunned guest, taken at the source and put in at the destination."""
