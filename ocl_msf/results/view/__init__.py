"""A page to look at slots: drop them, swap them, see what the decoder draws; the command is `ocl-msf view`."""
