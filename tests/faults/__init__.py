"""What a run keeps when it is killed, stopped, or refused by the disk; `python -m tests.faults` is the long form."""
