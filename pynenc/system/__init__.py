"""What the operating system tells and takes: processors, locks, parents, waiting."""
